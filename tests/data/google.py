"""Google's object store on loopback: fake-gcs-server, and before it what lets Lance's client write there.

The emulator knows uploads of the JSON interface only, but Lance sends those of the XML one (`PUT /BUCKET/KEY`, with
`x-goog-if-generation-match: 0` where a commit may not overwrite another). Run as a script: pyarrow's client holds the
interpreter while it waits, so a server in the same process would never answer it.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit


class Front(BaseHTTPRequestHandler):
    """Passes requests on, uploads in the words of the other interface."""

    protocol_version = "HTTP/1.1"
    behind = 0
    """Port of the emulator."""

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        method, path = self.command, self.path
        put = method == "PUT" and not urlsplit(path).query
        if put:
            _, bucket, key = path.split("/", 2)
            method, path = "POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(unquote(key), '')}"
            if (generation := self.headers.get("x-goog-if-generation-match")) is not None:
                path += f"&ifGenerationMatch={generation}"
        emulator = http.client.HTTPConnection("127.0.0.1", self.behind)
        headers = {name: text for name, text in self.headers.items() if name.lower() != "connection"}
        emulator.request(method, path, body or None, headers)
        answer = emulator.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, text in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, text)
        length = int(answer.getheader("Content-Length", "0")) if method == "HEAD" else len(content)
        if put and answer.status == 200:
            self.send_header("ETag", f'"{json.loads(content)["etag"]}"')
            content, length = b"", 0
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        emulator.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    def log_message(self, *_: object) -> None:
        pass


def main(binary: str, folder: str) -> None:
    """Serves the folders in a folder as buckets; says the port when it can be used, and ends with its input."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    with ThreadingHTTPServer(("127.0.0.1", 0), Front) as free:
        Front.behind = free.server_port
    here = f"127.0.0.1:{server.server_port}"
    command = [binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(Front.behind), "-backend", "memory"]
    command += ["-data", folder, "-public-host", here, "-external-url", f"http://{here}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as emulator:
        assert emulator.stderr is not None
        assert "server started" in emulator.stderr.readline()
        import threading

        for work in (emulator.stderr.read, server.serve_forever):
            threading.Thread(target=work, daemon=True).start()
        print(server.server_port, flush=True)
        sys.stdin.read()
        emulator.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])

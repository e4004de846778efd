"""`terminus serve` on the command line."""

from __future__ import annotations

from pathlib import Path

from terminus import options
from terminus.errors import UserError


def serve(
    models: options.ServedModels = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 7860,
    token_file: options.TokenFile = None,
    models_dir: options.ModelsFolder = None,
    folder: options.ImagesFolder = Path("images"),
    runs: options.RunsFolder = Path("runs"),
    root_path: options.RootPath = "",
    devices: options.Devices = "auto",
    threads: options.Threads = None,
    expand: options.Expand = None,
    safety: options.Safety = None,
    sign: options.Sign = None,
    stdio: options.Stdio = False,
) -> None:
    """Serve a page to draw on, and OpenAI-style, A1111-style and MCP interfaces."""
    from terminus.model.naming import find_whole
    from terminus.sampling.arguments import Output, check_folder

    for name in models or ():
        find_whole(name)
    check_folder(folder)
    signer = Output(folder, sign=sign).signer()
    if token_file is None and host not in ("127.0.0.1", "localhost", "::1"):
        raise UserError(
            f"--host {host} without --token-file", rule="Whoever reaches the server could draw, look and delete",
            fix="Write a token into a file and give it with --token-file, or leave --host out",
        )  # fmt: skip
    from terminus.serving.addresses import checked_root, devices_of
    from terminus.serving.expansion import TextServer
    from terminus.serving.safety_rules import SafetyRules

    root, places = checked_root(root_path), devices_of(devices)
    text_server = None if expand is None else TextServer.parse(expand)
    rules = None if safety is None else SafetyRules.parse(safety)
    from terminus.serving.command import serve as run_serve
    from terminus.serving.security import Tokens
    from terminus.serving.service import ServeOptions
    from terminus.serving.worker_setup import WorkerSetup

    run_serve(
        ServeOptions(
            models=tuple(models or ("nano",)),
            host=host,
            port=port,
            folder=folder,
            model_folders=tuple(models_dir or ()),
            runs=runs,
            tokens=Tokens({}) if token_file is None else Tokens.read(token_file),
            root_path=root,
            devices=places,
            setup=WorkerSetup(threads, rules, signer),
            text_server=text_server,
        ),
        stdio=stdio,
    )

"""A Space of the Hub that serves a published model: a container with `terminus serve`, on port 7860 of the Space.

It only reads: the model comes from its repository, and what visitors draw is gone when the Space sleeps. Nobody gets in
without a token of the Space's secret `TERMINUS_TOKENS`; without the secret the container says so and ends.
"""

from __future__ import annotations

from huggingface_hub import SpaceCard, SpaceCardData

from terminus.card.escape import line
from terminus.card.facts import FinishedRun
from terminus.publishing.contents import PublishedFile
from terminus.sampling.generation_metadata import version

PORT = 7860
SECRET = "TERMINUS_TOKENS"

DOCKERFILE = f"""\
FROM python:3.12-slim

# Spaces run a container as user 1000.
RUN useradd --create-home --home-dir /srv/terminus --uid 1000 user
RUN pip install --no-cache-dir "{{requirement}}"
USER user
WORKDIR /srv/terminus
COPY --chown=user start.sh .
EXPOSE {PORT}
CMD ["sh", "start.sh"]
"""

START = f"""\
#!/bin/sh
# Who may come in stands in the Space's secret {SECRET}, a line each: TOKEN, or NAME TOKEN.
set -eu
if [ -z "${{{{{SECRET}:-}}}}" ]; then
  echo "Set the secret {SECRET} in the Space's settings: a line for each visitor, NAME TOKEN" >&2
  exit 1
fi
umask 077
printf '%s\\n' "${SECRET}" > tokens
unset {SECRET}
# Everything that is written lies in the container, and is gone when the Space sleeps.
exec terminus serve {{repository}} --host 0.0.0.0 --port {PORT} --token-file tokens \\
  --folder images --runs runs
"""

README = """\
# {name}

Draws with [{repository}](/{repository}) by `terminus serve`: a page, and OpenAI-style and A1111-style
interfaces. Set two secrets in the Space's settings:

- `TERMINUS_TOKENS`: who may come in, a line each, `NAME TOKEN`. Every name has a gallery and a queue of its own.
- `HF_TOKEN`: only for a private or gated model, with the right to read it.

Nothing is kept: images are gone when the Space sleeps.
"""


def space_files(run: FinishedRun, repository: str) -> list[PublishedFile]:
    """The files of the Space of a published run."""
    name = line(run.name)
    licence = None if run.licence is None else run.licence.id
    data = SpaceCardData(title=name, sdk="docker", app_port=PORT, license=licence, models=[repository], pinned=False)
    readme = SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{README.format(name=name, repository=repository)}")
    texts = {
        "Dockerfile": DOCKERFILE.format(requirement=_requirement()),
        "README.md": str(readme),
        "start.sh": START.format(repository=repository),
    }
    return [PublishedFile(path, text.encode()) for path, text in texts.items()]


def _requirement() -> str:
    """This version, where it is one that was released."""
    here = version()
    return "terminus-xl" if "dev" in here or "+" in here else f"terminus-xl=={here}"

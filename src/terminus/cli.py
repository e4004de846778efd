"""The command line: verbs only. Each imports what it needs when it runs, so that `--help` answers at once.

`main` is the process boundary, the one place where an exception becomes a paragraph and an exit code.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from terminus import cli_data, cli_evaluate, cli_merge, cli_serve, options
from terminus.cli_bench import bench_app
from terminus.cli_config import config_app
from terminus.cli_data import check_plan, load_recipe, loading
from terminus.cli_system import fail, log_to_stderr, prepare_streams, reader_is_gone, refusal, unwritten
from terminus.errors import EXIT_DEFECT, EXIT_DONE, EXIT_INPUT, EXIT_STOPPED, Stopped, UserError

if TYPE_CHECKING:
    from terminus.sampling import arguments

EXIT_PIPE_CLOSED = 141
"""What a shell reports for a writer whose reader went away (128 + SIGPIPE)."""

app = typer.Typer(
    name="terminus",
    help="Train, sample and judge SDXL models with zero-terminal-SNR schedules and velocity prediction.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config_app, name="config")
app.add_typer(bench_app, name="bench")
app.add_typer(cli_data.data_app, name="data")


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        print(f"terminus {metadata.version('terminus-xl')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    # `main` takes it out of the arguments wherever it stands; it is declared for --help
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; allowed anywhere.")] = False,
) -> None:
    del version, debug


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder of data, run and report.")] = Path("runs/demo")) -> None:
    """Prepare data, then train, sample and evaluate a tiny model, and write its card: minutes on a CPU."""
    from terminus.sampling.arguments import check_folder

    check_folder(out)
    with loading():
        from terminus.demo import demo as run_demo

    run_demo(out)


app.command()(cli_data.prepare)
app.command()(cli_data.caption)
app.command()(cli_serve.serve)


@app.command()
def train(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    plan: options.Plan = False,
    gpu: options.PlanGpu = None,
    processes: options.PlanProcesses = 1,
    as_json: options.PlanJson = False,
    watch: options.Watch = False,
) -> None:
    """Train the model that a recipe describes, or continue its run.

    The run's folder (run.dir) keeps recipe, log, checkpoints and the finished
    model. After Ctrl-C, SIGTERM or a crash the same command continues from
    the newest checkpoint. With torchrun several processes train one model.
    """
    # One verb, three uses: estimate a run, look at one, or train.
    check_plan(plan, gpu, processes, as_json, watch)
    loaded = load_recipe(recipe, overrides)
    if plan:
        from terminus.training.plan.planning import show_training_plan

        show_training_plan(loaded.value, gpu, as_json, processes)
    elif watch:
        from rich.console import Console

        from terminus.training.monitor.dashboard import watch as watch_run

        watch_run(Path(loaded.value.run.dir), Console(highlight=False))
    else:
        from terminus.training.run import train as run_train

        finished = run_train(loaded)
        if _answers():
            print(finished)


@app.command()
def sample(
    context: typer.Context,
    model: options.ModelName,
    prompt: options.Prompts = None,
    *,
    negative: options.Negative = "",
    count: options.Count = 1,
    image: options.StartImage = None,
    strength: options.Strength = None,
    mask: options.MaskImage = None,
    outpaint: options.Outpaint = None,
    upscale: options.Upscale = None,
    hires: options.Hires = None,
    fill: options.Fill = None,
    feather: options.Feather = None,
    padding: options.Padding = None,
    again: options.Again = None,
    size: options.SampleSize = None,
    steps: options.SampleSteps = 28,
    guidance: options.Guidance = 4.0,
    rescale: options.Rescale = None,
    interval: options.Interval = "0:1",
    solver: options.Solver = "dpmpp_2m",
    spacing: options.Spacing = "trailing",
    seed: options.SampleSeed = 0,
    variation: options.Variation = 0.0,
    lora: options.Loras = None,
    control: options.Controls = None,
    out: options.ImagesOut,
    file_format: options.Format = "png",
    private: options.Private = False,
    sign: options.Sign = None,
    compiled: options.Compile = "off",
    offload: options.Offload = "none",
    device: options.Device = "auto",
) -> None:
    """Draw images: from text, from text and an image, or again from an image's own metadata."""
    # Everything that can be said of the arguments is said before torch is imported.
    from terminus.sampling import arguments, limits, shapes

    drawer = arguments.Drawer(model, lora or (), control or (), device, compiled, offload)
    output = arguments.Output(out, file_format.lower(), private, sign)
    drawer.check()
    arguments.check_folder(out)
    # An image says by itself how it was drawn; options that say it otherwise are refused beside it.
    if again is not None:
        _sample_again(drawer, output, again, image, mask, _given(context))
        return
    # A new image: where it starts, how it is drawn, and how often.
    start = arguments.Start(image, mask, outpaint, upscale, hires, strength, fill, feather, padding)
    part, pixels = shapes.parse_interval(interval), None if size is None else shapes.parse_size(size)
    limits.check_settings(steps, guidance, rescale, part, solver, spacing, variation)
    limits.check_seeds(seed, count)
    arguments.check_prompts(prompt or ())
    with loading():
        from terminus.sampling import command
        from terminus.sampling.settings import Settings

    settings = Settings(steps, guidance, rescale, part, solver, spacing, pixels, variation)
    command.sample(drawer, output, prompt or (), negative, seed, count, settings, start)


def _sample_again(
    drawer: arguments.Drawer, output: arguments.Output, again: Path, image: Path | None, mask: Path | None,
    given: Sequence[str],
) -> None:  # fmt: skip
    from terminus.sampling import arguments

    arguments.check_again(given)
    arguments.existing(again)
    with loading():
        from terminus.sampling import command

    command.again(drawer, output, again, image=image, mask=mask, given=given)


def _given(context: typer.Context) -> list[str]:
    """The options that the command line names, whatever their value."""
    source = context.get_parameter_source
    named = ((one.opts[0], source(one.name)) for one in context.command.params if one.name)
    return [option for option, where in named if where is not None and where.name == "COMMANDLINE"]


@app.command()
def inspect(
    path: options.AnyPath,
    as_json: options.AsJson = False,
    fix: options.FixTarget = None,
    decided: options.Decided = None,
    probe: options.Probe = False,
) -> None:
    """Identify a model, adapter, run or image, and give the evidence."""
    from terminus.model.naming import at_home, find_local

    _check_fix(fix, decided, as_json or probe)
    # What is to be corrected is a model; what is only looked at may be any file.
    if fix is not None or not at_home(path).exists():
        find_local(path)
    with loading():
        from terminus.inspection import command

    if fix is not None:
        command.fix_command(path, str(fix), decided)
    else:
        command.inspect(path, as_json, probe)


def _check_fix(fix: Path | None, decided: str | None, other: bool) -> None:
    if fix is None and decided is not None:
        raise UserError("--as needs --fix", fix="Name the corrected copy: --fix TARGET")
    if fix is not None and other:
        raise UserError("--fix only writes a copy", fix="Leave out --json and --probe")
    from terminus.model.choices import DECISIONS, check_choice, check_target

    if decided is not None:
        check_choice("--as", decided, DECISIONS)
    if fix is not None:
        check_target(fix)


@app.command()
def convert(
    source: options.ConvertSource,
    target: options.ConvertTarget,
    precision: options.StoredPrecision = "keep",
    shard_size: options.ShardSize = None,
    ema: options.TakeEma = False,
    onto: options.Onto = None,
) -> None:
    """Convert a diffusers folder to a single file or back; with --onto, an adapter to plain weight differences."""
    from terminus.model.choices import check_target
    from terminus.model.naming import find_local

    check_target(target, precision, shard_size, ema, onto)
    find_local(source)
    with loading():
        from terminus.model.adapter_differences import write_differences
        from terminus.model.convert import convert as run_convert

    if onto is not None:
        plain = write_differences(source, onto, target, precision)
        print(f"{plain.target}\n{plain.tensors} tensors, {plain.size / 1e6:.1f} MB, for this model alone")
        return
    written = run_convert(source, target, precision, shard_size, ema)
    print(f"{written.target}\n{written.tensors} tensors, {written.size / 1e6:.1f} MB, says {written.says}")


app.command()(cli_merge.merge)
app.command()(cli_merge.extract)
app.command()(cli_evaluate.evaluate)


@app.command()
def card(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run.")],
    check: Annotated[bool, typer.Option("--check", help="Only check that README.md agrees with the run.")] = False,
) -> None:
    """Write the model card, README.md, from the records of a run."""
    from terminus.card.command import card as run_card

    print(run_card(run_dir, check=check))


@app.command()
def publish(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run with its card.")],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="owner/name on the Hugging Face Hub.")],
    really: options.Really = False,
    private: options.PrivateRepository = False,
    gated: options.Gated = False,
    collection: options.Collection = None,
    space: options.WithSpace = False,
    civitai: options.Civitai = None,
) -> None:
    """List what a run's repository on the Hub would hold; with --really make it and send it."""
    from terminus.card.facts import read_run
    from terminus.publishing.arguments import check_repository

    check_repository(repository)
    read_run(run_dir)
    with loading():
        from terminus.publishing.civitai import write_bundle
        from terminus.publishing.command import publish as run_publish
        from terminus.publishing.contents import Terms

    run_publish(run_dir, repository, really, Terms(private, gated, collection, space))
    if civitai is not None:
        print(write_bundle(run_dir, civitai))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1, 2, 75 (`errors`); 130 for Ctrl-C and 141 for a closed pipe."""
    code = _main(list(sys.argv[1:] if arguments is None else arguments))
    if arguments is None and os.environ.get("WORLD_SIZE", "1") != "1":
        # gloo's threads may still let go of a tensor, which aborts a Python that is ending: it ends without ceremony.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _main(given: list[str]) -> int:
    debug = "--debug" in given
    prepare_streams()
    log_to_stderr()
    code = _run(given, debug)
    # A command whose results did not arrive has not succeeded. Wrong input and a stop keep their own codes.
    if (problem := unwritten()) is not None and code in (EXIT_DONE, EXIT_DEFECT):
        return fail(problem, EXIT_INPUT, debug)
    return code


def _run(given: list[str], debug: bool) -> int:
    try:
        # without standalone mode typer raises its complaints instead of printing them, and returns exit codes (130)
        code = app(_without_debug(given) or ["--help"], "terminus", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_DONE
    except UserError as error:
        return EXIT_INPUT if error.told else fail(str(error), EXIT_INPUT, debug)
    except Stopped as stopped:
        return _stopped(stopped, given, debug)
    except typer.TyperException as error:
        return fail(_usage(error, given), EXIT_INPUT, debug)
    except (BrokenPipeError, SystemExit) as error:
        return _pipe_closed(error, given, debug)
    except OSError as error:
        told = unwritten() or refusal(error)
        return _defect(error, given, debug) if told is None else fail(told, EXIT_INPUT, debug)
    except Exception as error:  # noqa: BLE001 - the process boundary: the only place that may catch everything
        return _defect(error, given, debug)


def _without_debug(given: Sequence[str]) -> list[str]:
    return [word for word in given if word != "--debug"]


def _answers() -> bool:
    """Whether this process speaks for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _stopped(stopped: Stopped, given: Sequence[str], debug: bool) -> int:
    if not _answers():
        return EXIT_STOPPED
    reason = str(stopped) or "Stopped; everything is saved."
    return fail(f"{reason} The same command continues: {_command(given)}", EXIT_STOPPED, debug)


def _pipe_closed(error: BaseException, given: Sequence[str], debug: bool) -> int:
    # typer and rich turn a broken pipe into SystemExit; a pipe other than stdout (a worker's) is a defect
    if not reader_is_gone():
        return _defect(error.__context__ or error, given, debug)
    # what is left in the buffer must not raise again when the interpreter flushes it
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_PIPE_CLOSED


def _defect(error: BaseException, given: Sequence[str], debug: bool) -> int:
    hint = "" if debug else f" To see where: {_command([*given, '--debug'])}"
    what = f"Internal error (a bug in Terminus, not in your input): {type(error).__name__}: {error}."
    return fail(what + hint, EXIT_DEFECT, debug)


def _usage(error: typer.TyperException, given: Sequence[str]) -> str:
    near = getattr(error, "possibilities", None)
    message = (error.message if near else error.format_message()).rstrip(".")
    if near:
        message += f". Did you mean {' or '.join(f'`{option}`' for option in sorted(near))}?"
    end = "" if message.endswith("?") else "."
    return f"{message}{end} See `terminus {_verb(given)}--help`."


def _verb(given: Sequence[str]) -> str:
    """The command that was given, with a space; "" if there is none."""
    verbs = [command.callback.__name__ for command in app.registered_commands if command.callback]
    verbs += ["config", "data"]
    return next((f"{word} " for word in given if word in verbs), "")


def _command(given: Sequence[str]) -> str:
    return shlex.join(["terminus", *given])

"""The command line: verbs only. Each imports what it needs when it runs, so that `--help` answers at once.

`main` is the process boundary, the one place where an exception becomes a paragraph and an exit code.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from terminus import cli_data, options
from terminus.cli_bench import bench_app
from terminus.cli_config import config_app
from terminus.cli_data import check_gpu, load_recipe, loading
from terminus.cli_system import log_to_stderr, prepare_streams, refusal, unwritten
from terminus.errors import EXIT_DEFECT, EXIT_DONE, EXIT_INPUT, EXIT_STOPPED, Stopped, UserError, printable

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
def demo(out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/demo")) -> None:
    """The whole life of a tiny model in minutes: prepare, train, sample, evaluate, card."""
    from terminus.sampling.arguments import check_folder

    check_folder(out)
    with loading():
        from terminus.demo import demo as run_demo

    run_demo(out)


app.command()(cli_data.prepare)
app.command()(cli_data.caption)


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
    """Train, or continue: the same command picks up where the run was stopped."""
    if not plan and (gpu is not None or as_json or processes > 1):
        raise UserError(
            "--gpu, --processes and --json belong to --plan",
            fix="Add --plan; to train on a device set run.device, and on several start the command with torchrun",
        )
    if plan and watch:
        raise UserError(
            "--plan and --watch", rule="A plan is made before a run, and a run is watched", fix="Leave out either"
        )
    check_gpu(gpu)
    loaded = load_recipe(recipe, overrides)
    if plan:
        from terminus.training.plan.planning import show_training_plan

        show_training_plan(loaded.value, gpu, as_json, processes)
        return
    if watch:
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
    out: options.ImagesOut,
    negative: options.Negative = "",
    seed: options.Seed = 0,
    steps: options.Steps = 28,
    count: options.Count = 1,
    size: options.ImageSize = None,
    guidance: options.Guidance = 4.0,
    rescale: options.Rescale = None,
    interval: options.Interval = "0:1",
    solver: options.Solver = "dpmpp_2m",
    spacing: options.Spacing = "trailing",
    variation: options.Variation = 0.0,
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
    lora: options.Loras = None,
    control: options.Controls = None,
    file_format: options.Format = "png",
    private: options.Private = False,
    sign: options.Sign = None,
    compiled: options.Compile = "off",
    offload: options.Offload = "none",
    device: options.Device = "auto",
) -> None:
    """Draw images from prompts, or from prompts and an image; or an image of ours again."""
    # Everything that can be said of the arguments is said before torch is imported.
    from terminus.sampling import arguments, limits, shapes

    drawer = arguments.Drawer(model, lora or (), control or (), device, compiled, offload)
    output = arguments.Output(out, file_format.lower(), private, sign)
    drawer.check()
    arguments.check_folder(out)
    if again is not None:
        _sample_again(drawer, output, again, image, mask, _given(context))
        return
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
    """Say what a file or folder is, and how we know."""
    if fix is None and decided is not None:
        raise UserError("--as without --fix", fix="Name the corrected copy: --fix TARGET")
    if fix is not None and (as_json or probe):
        raise UserError("--fix writes a copy and looks at nothing else", fix="Leave out --json and --probe")
    from terminus.model.choices import DECISIONS, check_choice, check_target
    from terminus.model.naming import at_home, find_local

    if decided is not None:
        check_choice("--as", decided, DECISIONS)
    if fix is not None:
        check_target(fix)
    if fix is not None or not at_home(path).exists():
        find_local(path)
    with loading():
        from terminus.inspection import command

    if fix is not None:
        command.fix_command(path, str(fix), decided)
    else:
        command.inspect(path, as_json, probe)


@app.command()
def convert(
    source: options.ConvertSource,
    target: options.ConvertTarget,
    precision: options.StoredPrecision = "keep",
    shard_size: options.ShardSize = None,
    ema: options.TakeEma = False,
    onto: options.Onto = None,
) -> None:
    """Turn a diffusers folder into a single file, or back; with --onto an adapter into plain differences."""
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


@app.command()
def evaluate(
    model: options.ModelOrRun,
    out: options.EvaluationOut = None,
    recipe: options.JudgedRecipe = None,
    prompts: options.PromptsFile = None,
    count: options.JudgedCount = None,
    steps: options.Steps = 28,
    seed: options.Seed = 0,
) -> None:
    """Measure a model on its own held-out data, and by a contrast probe: metrics.json, report.html, samples.png."""
    from terminus.evaluation.prompt_file import read_prompts
    from terminus.judged import find_judged, trained_by
    from terminus.sampling import limits
    from terminus.sampling.arguments import check_folder

    found = find_judged(model, recipe)
    folder = found.folder(out)
    check_folder(folder)
    limits.check_steps(steps)
    limits.check_seeds(seed, count or 1)
    if prompts is not None:
        read_prompts(prompts)
    with loading():
        from terminus.evaluation.command import Own
        from terminus.evaluation.command import evaluate as run_evaluate
        from terminus.evaluation.settings import settings_for

    run_evaluate(found.model, folder, settings_for(count, steps, seed), data=Own(trained_by(found), prompts, count))


@app.command()
def card(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    check: Annotated[bool, typer.Option("--check", help="Only say whether README.md is what the run says.")] = False,
) -> None:
    """Write the model card, README.md, from what the run recorded."""
    from terminus.card.command import card as run_card

    print(run_card(run_dir, check=check))


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
    if (problem := unwritten()) is not None and code in (EXIT_DONE, EXIT_DEFECT):
        return _fail(problem, EXIT_INPUT, debug)
    return code


def _run(given: list[str], debug: bool) -> int:
    try:
        # without standalone mode typer raises its complaints instead of printing them, and returns exit codes (130)
        code = app([word for word in given if word != "--debug"] or ["--help"], "terminus", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_DONE
    except UserError as error:
        return EXIT_INPUT if error.told else _fail(str(error), EXIT_INPUT, debug)
    except Stopped as stopped:
        if not _answers():
            return EXIT_STOPPED
        reason = str(stopped) or "Stopped; everything is saved."
        return _fail(f"{reason} The same command continues: {_command(given)}", EXIT_STOPPED, debug)
    except typer.TyperException as error:
        return _fail(_usage(error, given), EXIT_INPUT, debug)
    except (BrokenPipeError, SystemExit) as error:
        # typer and rich turn a broken pipe into SystemExit; a pipe other than stdout (a worker's) is a defect
        if not _reader_is_gone():
            return _defect(error.__context__ or error, given, debug)
        # what is left in the buffer must not raise again when the interpreter flushes it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except OSError as error:
        told = unwritten() or refusal(error)
        return _defect(error, given, debug) if told is None else _fail(told, EXIT_INPUT, debug)
    except Exception as error:  # noqa: BLE001 - the process boundary: the only place that may catch everything
        return _defect(error, given, debug)


def _answers() -> bool:
    """Whether this process speaks for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _fail(paragraph: str, code: int, debug: bool) -> int:
    """Print to stderr without wrapping, which would break `file:line:column` apart, and without markup."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    text = Text.assemble(("error: ", "bold red") if code != EXIT_STOPPED else "", printable(paragraph))
    with contextlib.suppress(OSError):  # nowhere to say it: the code still does
        if debug:
            console.print_exception()
        console.print(text, soft_wrap=True)
    return code


def _defect(error: BaseException, given: Sequence[str], debug: bool) -> int:
    hint = "" if debug else f" To see where: {_command([*given, '--debug'])}"
    what = f"A defect of ours, not of your input: {type(error).__name__}: {error}."
    return _fail(what + hint, EXIT_DEFECT, debug)


def _reader_is_gone() -> bool:
    stdout = sys.stdout.fileno()
    poll = select.poll()
    poll.register(stdout, 0)
    broken = any(event & select.POLLERR for _, event in poll.poll(0))
    # rich has already put the null device there when it meets a closed pipe
    return broken or os.path.samestat(os.fstat(stdout), os.stat(os.devnull))


def _usage(error: typer.TyperException, given: Sequence[str]) -> str:
    near = getattr(error, "possibilities", None)
    message = (error.message if near else error.format_message()).rstrip(".")
    if near:
        message += f". Did you mean {' or '.join(f'`{option}`' for option in sorted(near))}?"
    verbs = [command.callback.__name__ for command in app.registered_commands if command.callback]
    verb = next((f"{word} " for word in given if word in (*verbs, "config", "data")), "")
    return f"{message}{'' if message.endswith('?') else '.'} See `terminus {verb}--help`."


def _command(given: Sequence[str]) -> str:
    return shlex.join(["terminus", *given])

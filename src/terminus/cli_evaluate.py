"""`terminus evaluate`: which of its ways is meant, a model, a folder of images, or several beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from terminus import options
from terminus.cli_data import loading
from terminus.errors import UserError

if TYPE_CHECKING:
    from terminus.evaluation.bias_file import BiasQuestions
    from terminus.judged import Judged


def evaluate(
    subjects: options.Subjects,
    out: options.EvaluationOut = None,
    compare: options.CompareThem = False,
    reference: options.Reference = None,
    training: options.TrainingImages = None,
    features: options.Features = None,
    any_size: options.AnySize = False,
    bias: options.BiasFile = None,
    judge: options.JudgeServer = None,
    judge_model: options.JudgeModel = None,
    judge_key: options.JudgeKey = None,
    recipe: options.JudgedRecipe = None,
    prompts: options.PromptsFile = None,
    count: options.JudgedCount = None,
    steps: options.Steps = 28,
    seed: options.Seed = 0,
) -> None:
    """Evaluate a model or a folder of images, or compare several: metrics.json, report.html, samples.png."""
    from terminus.evaluation.image_folder_names import is_image_folder
    from terminus.judged import find_judged
    from terminus.sampling.arguments import check_folder

    # Everything that can be said of the arguments is said before torch is imported.
    if len(subjects) > 1 and not compare:
        raise UserError(f"{len(subjects)} models are named", fix="Add --compare to judge them beside each other")
    folders = [is_image_folder(Path(name)) for name in subjects]
    found = [None if folder else find_judged(name, recipe) for name, folder in zip(subjects, folders, strict=True)]
    where = _folder(found[0], out, compare)
    check_folder(where)
    _check_drawing(steps, seed, count, prompts)
    questions = None if bias is None else _questions(bias, folders)
    _check_judge(judge, judge_model)
    with loading():
        from terminus.evaluation.against import Against
        from terminus.evaluation.atoms import JudgeEndpoint
        from terminus.evaluation.settings import settings_for
    asked = None if judge is None or judge_model is None else JudgeEndpoint(judge, judge_model, judge_key)
    against = Against(reference, training, tuple(features or ("nano",)), any_size, asked, questions)
    settings = settings_for(count, steps, seed)
    # Several beside each other, a folder of images, or one model.
    if compare:
        from terminus.evaluation.compare_command import compare_models as run_compare
        from terminus.judged import trained_by

        trained = next((trained_by(one) for one in found if one is not None and one.recipe is not None), None)
        names = [name if one is None else one.model for name, one in zip(subjects, found, strict=True)]
        run_compare(names, where, settings, prompts, trained, against)
    elif found[0] is None:
        from terminus.evaluation.folder_command import evaluate_folder

        evaluate_folder(Path(subjects[0]), where, against, seed)
    else:
        from terminus.evaluation.command import Own
        from terminus.evaluation.command import evaluate as run_evaluate
        from terminus.judged import trained_by

        run_evaluate(found[0].model, where, settings, None, Own(trained_by(found[0]), prompts, count), against)


def _check_drawing(steps: int, seed: int, count: int | None, prompts: Path | None) -> None:
    from terminus.evaluation.prompt_file import read_prompts
    from terminus.sampling import limits

    limits.check_steps(steps)
    limits.check_seeds(seed, count or 1)
    if prompts is not None:
        read_prompts(prompts)


def _questions(bias: Path, folders: list[bool]) -> BiasQuestions:
    from terminus.evaluation.bias_file import read_bias

    if all(folders):
        raise UserError("--bias asks a model, and a folder of images cannot be asked", fix="Name a model")
    return read_bias(bias)


def _check_judge(judge: str | None, judge_model: str | None) -> None:
    if (judge is None) != (judge_model is None):
        raise UserError("--judge and --judge-model belong together", fix="Name the server and the model that it serves")


def _folder(found: Judged | None, out: Path | None, compare: bool) -> Path:
    if found is not None and not compare:
        return found.folder(out)
    if out is None:
        raise UserError("Where the report goes is not said", rule="Only a run has a place of its own", fix="Add --out")
    return out

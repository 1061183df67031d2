"""`vision-wrapper`, the command line: thin, and quick to answer `--help`."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from vision_wrapper._lookup import Table, check_names

app = typer.Typer(
    help="From a folder of images to a trained, explained and reproducible classifier.",
    no_args_is_help=True,
    rich_markup_mode=None,  # importing rich would take half of the time of --help
    pretty_exceptions_enable=False,
    add_completion=False,
)

INTERRUPTED = 130  # the exit status after Ctrl-C, as shells have it

DataOption = Annotated[Optional[str], typer.Option("--data", help="A data set's name, or a folder of images.")]  # noqa: UP045
RootOption = Annotated[str, typer.Option(help="Where named data sets are kept.")]
EpochsOption = Annotated[Optional[int], typer.Option(help="Instead of the recipe's.")]  # noqa: UP045
SeedOption = Annotated[Optional[int], typer.Option(help="Instead of the recipe's.")]  # noqa: UP045
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe; repeat for more."),
]
SkipOption = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be decoded.")]
SeedsOption = Annotated[int, typer.Option(help="How many seeds, counted from 0.")]
RepeatsOption = Annotated[Optional[Path], typer.Option(help="The folder for the run folders.")]  # noqa: UP045
RecipeArgument = Annotated[str, typer.Argument(help="A name that `recipes` lists.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
def train(
    recipe: RecipeArgument = "quickstart",
    data: DataOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    set_: SetOption = None,
    out: Annotated[Optional[Path], typer.Option(help="The run folder.")] = None,  # noqa: UP045
    root: RootOption = "data",
    skip_unreadable: SkipOption = False,
) -> None:
    """Train a recipe and write a run folder.

    Without a recipe, trains `quickstart` on the digits, offline. The same command again continues an unfinished run.
    """
    from vision_wrapper import recipes
    from vision_wrapper.trainer import EpochLog, ProgressBar

    _check_recipe(recipe)
    settings = _settings(data, epochs, seed, set_)
    bar = ProgressBar() if sys.stderr.isatty() else EpochLog()
    data = settings.pop("data", None)
    result = recipes.run(recipe, data, root, out, callbacks=[bar], skip_unreadable=skip_unreadable, **settings)
    if result.predictions is None:
        command = shlex.join(["vision-wrapper", *sys.argv[1:], *([] if out else ["--out", str(result.run_dir)])])
        _say(f"Interrupted after {len(result.history)} of {result.recipe.epochs} epochs. To go on: {command}")
        raise typer.Exit(INTERRUPTED)
    _print_accuracy(f"of the last epoch, {_trained(result.run_dir)}", result.predictions)
    _say(f"report: {result.run_dir / 'report.html'}")


@app.command()
def evaluate(run: RunArgument) -> None:
    """Test a run's best.safetensors on its test set."""
    from vision_wrapper import recipes

    predictions = recipes.evaluate_run(run)
    _print_accuracy(f"of best.safetensors, {_trained(run)}", predictions)
    for result in predictions.per_class():
        share = f"{result.accuracy:7.2%}" if result.count else "–".rjust(7)
        _say(f"  {result.name:20} {share}  ({result.correct}/{result.count})")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A classifier file, such as RUN/best.safetensors.")],
    files: Annotated[list[str], typer.Argument(help="Image files.")],
    format: Annotated[str, typer.Option(help="table, csv or json; the last two with every probability.")] = "table",
) -> None:
    """Classify images.

    Prints a line per image; as a table: file, class and probability, separated by tabs.
    """
    from vision_wrapper import load_classifier
    from vision_wrapper._files import printable
    from vision_wrapper.errors import VisionWrapperError

    line_of = _PREDICTION_LINES[format]
    classifier, failed = load_classifier(model), 0
    if format == "csv":
        typer.echo(_csv_line(["file", "class", "probability", *classifier.classes]))
    for file in files:
        try:
            (prediction,) = classifier.predict([file])
            typer.echo(printable(line_of(file, prediction, classifier.classes)))
        except VisionWrapperError as error:
            failed += 1
            typer.echo(printable(f"error: {error}"), err=True)
    if failed:
        raise typer.Exit(1)


def _table_line(file: str, prediction: Any, classes: Any) -> str:
    return f"{file}\t{prediction.name}\t{prediction.probability:.4f}"


def _prediction_csv(file: str, prediction: Any, classes: Any) -> str:
    shares = (f"{share:.6f}" for share in (prediction.probability, *prediction.probabilities))
    return _csv_line([str(file), prediction.name, *shares])


def _prediction_json(file: str, prediction: Any, classes: Any) -> str:
    shares = dict(zip(classes, prediction.probabilities, strict=True))
    return json.dumps(
        {"file": str(file), "class": prediction.name, "probability": prediction.probability, "probabilities": shares}
    )


def _csv_line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # with another one, line breaks would not be quoted
    return text.getvalue().removesuffix("\r\n")


_PREDICTION_LINES = Table("format", {"table": _table_line, "csv": _prediction_csv, "json": _prediction_json})


@app.command()
def demo(
    model: Annotated[Path, typer.Argument(help="A classifier file, such as RUN/best.safetensors.")],
    port: Annotated[int, typer.Option(help="On this machine.", min=0, max=65535)] = 7860,
) -> None:
    """Serve a local page to drop an image on, until Ctrl-C.

    It shows the classifier's answer and where it looked. Only this machine can reach the page.
    """
    from vision_wrapper import load_classifier
    from vision_wrapper.demo import serve

    classifier = load_classifier(model)
    try:
        server = serve(classifier, port)
    except OSError as error:
        raise typer.BadParameter(
            f"Port {port} cannot be used ({error.strerror}): choose another with --port."
        ) from error
    typer.echo(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A classifier file, such as RUN/best.safetensors.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    format: Annotated[str, typer.Option(help="onnx or torch.")] = "onnx",
) -> None:
    """Write a classifier for use elsewhere.

    The file takes raw pixels: normalisation and softmax are part of it.
    """
    from vision_wrapper import classifier

    classifier.export(model, out, format=format)  # type: ignore[arg-type]
    typer.echo(f"wrote {out}")


@app.command("find-lr")
def find_lr(
    recipe: RecipeArgument = "quickstart",
    data: DataOption = None,
    seed: SeedOption = None,
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="Where the curve is drawn.")] = Path("lr_curve.png"),
    root: RootOption = "data",
    skip_unreadable: SkipOption = False,
) -> None:
    """Run the learning rate range test for a recipe."""
    from vision_wrapper import recipes, viz
    from vision_wrapper._distributed import join
    from vision_wrapper._files import check_writable, write_bytes

    if out.suffix.lower() != ".png":
        raise typer.BadParameter(f"--out is a picture .png, got {out}.")
    join().on_main(lambda: check_writable(out))
    _check_recipe(recipe)
    settings = _settings(data, None, seed, set_)
    curve = recipes.find_lr(recipe, settings.pop("data", None), root, skip_unreadable=skip_unreadable, **settings)
    if curve.suggestion is None or curve.max_lr is None:
        _say("no suggestion")
    else:
        _say(f"suggestion: {curve.suggestion:.3g}; for the peak of a cycle: {curve.max_lr:.3g}")
    _say(curve.reason)
    join().on_main(lambda: write_bytes(out, viz.plot_lr_curve(curve).to_png()))
    _say(f"curve: {out}")


@app.command()
def stats(
    data: Annotated[str, typer.Argument(metavar="NAME_OR_FOLDER", help="A data set's name, or a folder of images.")],
    root: RootOption = "data",
    channels: Annotated[int, typer.Option(help="3 for RGB, 1 for grey.")] = 3,
    skip_unreadable: SkipOption = False,
) -> None:
    """Mean, standard deviation, counts and sizes of the raw images."""
    from vision_wrapper import data as image_data

    images = image_data.load(data, root, channels=channels, skip_unreadable=skip_unreadable)
    typer.echo(str(image_data.stats(images)))


@app.command()
def recipes() -> None:
    """List the recipes and what they reach.

    Accuracies are in percent, on the test set after the last epoch.
    """
    from vision_wrapper.recipes import RECIPES, evidence

    for recipe, row in zip(RECIPES.values(), evidence.rows(RECIPES), strict=True):
        typer.echo(f"{recipe.name}: {recipe.description}")
        known = {name: value for name, value in row.items() if name != "recipe" and value != "–"}
        if recipe.expected is not None:
            known["measured on"] = evidence.provenance(recipe.expected)
        typer.echo("".join(f"    {name}: {value}\n" for name, value in known.items()))


@app.command()
def repeat(
    recipe: RecipeArgument,
    seeds: SeedsOption = 5,
    data: DataOption = None,
    epochs: EpochsOption = None,
    set_: SetOption = None,
    out: RepeatsOption = None,
    root: RootOption = "data",
    skip_unreadable: SkipOption = False,
) -> None:
    """Train a recipe over several seeds; print mean and spread.

    The same command again continues.
    """
    from vision_wrapper import recipes
    from vision_wrapper.trainer import EpochLog

    _check_recipe(recipe)
    settings = _settings(data, epochs, None, set_)
    where = {"data": settings.pop("data", None), "root": root, "out": out, "skip_unreadable": skip_unreadable}
    with _told_how_to_go_on():
        _say(recipes.repeat(recipe, seeds, **where, callbacks=[EpochLog()], **settings))


@app.command()
def compare(
    a: RecipeArgument,
    b: RecipeArgument,
    seeds: SeedsOption = 5,
    data: DataOption = None,
    epochs: EpochsOption = None,
    set_: SetOption = None,
    out: RepeatsOption = None,
    root: RootOption = "data",
    skip_unreadable: SkipOption = False,
) -> None:
    """Train two recipes over the same seeds; say if they differ.

    The same command again continues.
    """
    from vision_wrapper import recipes
    from vision_wrapper.trainer import EpochLog

    for recipe in (a, b):
        _check_recipe(recipe)
    settings = _settings(data, epochs, None, set_)
    where = {"data": settings.pop("data", None), "root": root, "out": out, "skip_unreadable": skip_unreadable}
    with _told_how_to_go_on():
        found = recipes.compare(a, b, seeds, **where, callbacks=[EpochLog()], **settings)
    _say(f"{found.a}\n{found.b}\n{found}")


@app.command()
def report(
    run: RunArgument,
    format: Annotated[str, typer.Option(help="html, or markdown: a README beside its pictures.")] = "html",
    compare: Annotated[Optional[Path], typer.Option(metavar="RUN", help="Another run to compare with.")] = None,  # noqa: UP045
) -> None:
    """Write a run's report again, or compare two runs."""
    from vision_wrapper import report as run_report

    write = Table("format of a report", {"html": run_report.write, "markdown": run_report.write_markdown})[format]
    if compare is not None and format != "html":
        raise typer.BadParameter("--compare writes HTML: leave --format out.")
    path = write(run) if compare is None else run_report.compare(run, compare)
    typer.echo(f"report: {path}")


@contextlib.contextmanager
def _told_how_to_go_on() -> Iterator[None]:
    """On Ctrl-C say that the command finds its unfinished run itself, and end it."""
    try:
        yield
    except KeyboardInterrupt:
        _say("Interrupted. The same command goes on.")
        raise typer.Exit(INTERRUPTED) from None


def _check_recipe(name: str) -> None:
    from vision_wrapper.data import DATASETS
    from vision_wrapper.recipes import RECIPES

    if name not in RECIPES and (name in DATASETS or Path(name).is_dir()):
        raise typer.BadParameter(f"{name} is data, not a recipe: train RECIPE --data {name}.")


def _settings(data: str | None, epochs: int | None, seed: int | None, assignments: list[str] | None) -> dict[str, Any]:
    """FIELD=VALUE, where a value is JSON or else a plain text, and the options that have a name of their own."""
    from vision_wrapper.recipes import Recipe

    settings: dict[str, Any] = {}
    for assignment in assignments or []:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set needs FIELD=VALUE, got {assignment!r}.")
        if name in settings:
            raise typer.BadParameter(f"{name} is given twice: --set {name}={settings[name]} and --set {assignment}.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    check_names("setting of a recipe", settings, [field.name for field in dataclasses.fields(Recipe)])
    for name, value in (("data", data), ("epochs", epochs), ("seed", seed)):
        if value is not None:
            if name in settings:
                raise typer.BadParameter(f"{name} is given twice: --{name} {value} and --set {name}={settings[name]}.")
            settings[name] = value
    return settings


def _trained(run: Path) -> str:
    """The data and the seed of a run folder."""
    from vision_wrapper.recipes import read_run

    plan, identity = read_run(run)
    return f"{identity['data']}, seed {plan.seed}"


def _print_accuracy(of: str, predictions: Any) -> None:
    low, high = predictions.accuracy_interval()
    right = int(predictions.correct.sum())
    _say(
        f"test accuracy {of}: {predictions.accuracy():.2%} ({right} of {len(predictions)}; "
        f"95% interval {low:.2%} to {high:.2%})"
    )


def _say(text: Any) -> None:
    """Print, of several processes in the main one alone."""
    from vision_wrapper._distributed import join

    if join().is_main:
        typer.echo(text)


def _open_streams() -> None:
    """Have an output that was closed (2>&-), and show whatever its encoding lacks in escapes: a name ends nothing."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line; the library's own errors are a sentence, not a traceback."""
    from vision_wrapper.errors import VisionWrapperError

    _open_streams()
    try:
        app()
    except VisionWrapperError as error:
        typer.echo(f"error: {error}", err=True)
        sys.last_value = error  # as after a traceback: what runs at the exit can tell that there was an error
        sys.exit(2)

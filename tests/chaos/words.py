"""Words: random parameters, in bulk through the parser, and some as whole commands."""

import signal
from collections.abc import Iterator
from random import Random

from tests.chaos.jobs import JOBS, Job, Lab, need_files
from tests.chaos.logs import LONGEST, NotSurvivedError, check_error, has_crashed, log_of
from tests.hostile import TooLongError, too_long

SECONDS = 20  # to parse one command line
EACH = 100  # command lines between two reports
ODD = (
    *("", " ", "-", "--", "-1", "0", "1", "2", "7", "0.5", "1.0", "-0.0", "1e-9", "1e400", "-inf"),
    *("nan", "9" * 30, "9" * 400, "0x10", "1_000", "true", "false", "True", "none", "None", "auto"),
    *(
        "a" * 3000,
        "a\nb",
        "a\0b",
        "\x1b[31m",
        "\u202e",
        "é",
        "😀",
        "\udcff",
        "'",
        '"',
        "$(x)",
        "`x`",
    ),
    *("a,b", "a,,b", "..", "/", "/dev/null", "/dev/zero", "/proc/self", "~", "~nobody", "%s", "{}"),
    *("=", "a=b", "prune_rate=0.1..0.2", "prune_rate=..", "=..", "sqlite:///x.db", "sqlite://"),
    *("postgresql://u:p@h/d", "http://", "digits", "mnist", "faces", "lenet", "lightcnn_9", "keep"),
    *("lottery", "magnitude", "snip", "global", "layerwise", "iterative", "one_shot", "unit"),
)
COMMANDS = ("run", "compare", "tune", "prepare_faces", "predict", "export", "measure", "report")
OTHER_JOBS = (  # their output is not checked
    Job("predict", ("predict", "--run=checkpoints", "--images=source"), dict, need_files),
    Job(
        "measure",
        ("measure", "--run=checkpoints", "--round=2", "--batches=1", "--queries=4"),
        dict,
        need_files,
    ),
    Job("report", ("report", "--run=checkpoints"), dict, need_files),
)


def sets(seed: int) -> Iterator[tuple[int, str]]:
    """Parse random command lines in this process; yields how many, and a problem or ""."""
    from pkgutil import resolve_name

    from experiments.__main__ import COMMANDS as KNOWN
    from experiments.config.parameters import parse
    from experiments.processes.program import INSIDE
    from experiments.processes.terminal import describe_error, is_user_error

    signal.signal(signal.SIGALRM, too_long)
    dice = Random(seed)
    while True:
        for number in range(EACH):
            name = dice.choice(COMMANDS)
            kind = resolve_name(INSIDE + KNOWN[name].parameters)
            words = random_words(kind, dice)
            problem = ""
            signal.alarm(SECONDS)
            try:
                given = parse(kind, name, words)
                if hasattr(given, "resolved"):
                    given.resolved("digits")
            except TooLongError:
                problem = f"it takes more than {SECONDS} s"
            except SystemExit as stop:
                problem = "" if stop.code in (0, 2) else f"status {stop.code}"
            except Exception as error:
                line = describe_error(error)
                if not is_user_error(error):
                    problem = f"{type(error).__name__}: {error}"
                elif len(line) > LONGEST or not line.isprintable():
                    problem = f"its line is too long or not printable: {line!r}"
            finally:
                signal.alarm(0)
            if problem:
                yield number + 1, f"{name} {words}: {problem}"[:2000]
                break
        else:
            yield EACH, ""


def random_words(kind: object, dice: Random) -> list[str]:
    """Some parameters of a command with values from other parameters, or odd ones."""
    fields = kind.model_fields  # type: ignore[attr-defined]
    defaults = [str(field.default) for field in fields.values()]
    names = dice.sample(sorted(fields), dice.randint(0, min(6, len(fields))))
    words = []
    for name in names:
        value = dice.choice(ODD if dice.random() < 0.6 else defaults)
        if dice.random() < 0.2:
            value = f"{value}{dice.choice(ODD)[:50]}"
        if dice.random() < 0.05:
            name = name[:-1]
        words += [f"--{name}={value}"] if dice.random() < 0.7 else [f"--{name}", value]
    return words


def commands(lab: Lab, dice: Random) -> tuple[int, str]:
    """Run a command with one random parameter: status 0, or 2 and an error of one line."""
    from pkgutil import resolve_name

    from experiments.__main__ import COMMANDS as KNOWN
    from experiments.processes.program import INSIDE

    # They would take long, or write to folders of the user.
    left_out = {"seeds", "rounds", "epochs", "retrain_epochs", "workers", "out"}
    left_out |= {"trials", "seeds_per_trial", "confirm_seeds"}
    values = [each for each in ODD if "\0" not in each and each not in ("\udcff", "mnist")]
    job = dice.choice([*JOBS.values(), *OTHER_JOBS])
    fields = resolve_name(INSIDE + KNOWN[job.name].parameters).model_fields
    name, value = dice.choice(sorted(fields.keys() - left_out)), dice.choice(values)
    kept = _without(job.words, name)
    what = f"{' '.join(kept)[:200]} --{name}={value[:80]!r}"
    with lab.folder(job, dice) as folder:
        try:
            status = lab.wait(lab.start((*kept, f"--{name}={value}"), folder))
            lab.check_gone(folder)
            if status not in (0, 2) or has_crashed(folder):
                raise NotSurvivedError(f"status {status}: {log_of(folder)[-1000:]}")
            check_error(folder, status)
            lab.check_ended(folder)
        except NotSurvivedError as error:
            raise NotSurvivedError(f"{what}: {error}") from None
    return 1, what


def _without(words: tuple[str, ...], name: str) -> tuple[str, ...]:
    """A command line without a parameter, in either of its spellings."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and not word.startswith(f"--{name}="):
            skip = word == f"--{name}"
            if not skip:
                kept.append(word)
        else:
            skip = False
    return tuple(kept)

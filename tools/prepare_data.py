"""Public raw files of the evaluation tasks, turned into the evaluator's layout.

    python tools/prepare_data.py --raw DIR --output DATA_PATH            # every task whose raw files are in DIR
    python tools/prepare_data.py --raw DIR --output DATA_PATH CLUE/ocnli bloom/glue_cola
    python tools/prepare_data.py --list                                  # all tasks: source, licence, how to get them

    DATA_PATH/<task>/<prompt>/<split>.jsonl      one row per line; several prompts for many tasks
    DATA_PATH/<task>/<file>                      the text of a language modelling task
    DATA_PATH/<task>/SOURCE.txt                  source, licence, counts

The prompts are templates in one data file per task, tools/preparing/*.yaml; tools/preparing/recipes.py describes them.
Rows read and rows written are compared and printed.
"""

import argparse
import sys
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    from runtime.arguments import CommandParser

    parser = CommandParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="folder below DATA_PATH (default: all that DIR has)")
    parser.add_argument("--raw", type=Path, metavar="DIR", help="folder with the raw files, one subfolder per data set")
    parser.add_argument("--output", type=Path, metavar="DATA_PATH", help="folder to write, the evaluator's data path")
    parser.add_argument("--list", action="store_true", help="show all tasks and end")
    return parser


def list_tasks(recipes) -> None:
    from tools.preparing.raw import MissingRawFile

    for recipe in recipes:
        print(f"{recipe.output}\n    {recipe.title}; licence: {recipe.licence}; {recipe.source}")
        try:
            recipe.read(Path("DIR"))
        except MissingRawFile as error:
            print(f"    first file or folder read: {str(error).split(': ')[0]}")
        for text in filter(None, (recipe.note, recipe.where)):
            print(f"    {text}")


def prepare_all(recipes, raw: Path, output: Path, named: bool) -> tuple[int, list[str], list[str]]:
    """Prepares every task; (how many, lines about those whose raw files are missing, faults of the others)."""
    from runtime.errors import UserError, printable
    from tools.preparing.raw import MissingRawFile
    from tools.preparing.writing import prepare, strangers

    done, missing, faults = 0, [], []
    for recipe in recipes:
        if recipe.reader is None and not named:
            missing.append(f"{recipe.output}: {recipe.where}")
            continue
        try:
            accounts = prepare(recipe, raw, output)
        except MissingRawFile as error:
            hint = f" ({recipe.where or recipe.source})"
            if named:
                raise MissingRawFile(f"{recipe.output}: {error}{hint}") from error
            missing.append(f"{recipe.output}: {error}{hint}")
            continue
        except UserError as error:
            faults.append(str(error))
            continue
        except OSError as error:
            raise UserError(f"{recipe.output}: {error.filename}: {error.strerror}") from None
        done += 1
        print(f"{recipe.output} ({recipe.title}; licence: {recipe.licence}; {recipe.source})")
        for account in accounts:
            print(f"    {account.line()}")
        if recipe.note:
            print(f"    note: {recipe.note}")
        for path in strangers(recipe, output, accounts):
            print(printable(f"warning: {path} is not of this run, but the evaluator would read it, too"),
                  file=sys.stderr)
    return done, missing, faults


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    from runtime.errors import UserError
    from runtime.show import counted
    from tools.preparing.recipes import choose, load_recipes

    try:
        known = load_recipes()
        recipes = choose(known, options.tasks) if options.tasks else list(known.values())
        if options.list:
            list_tasks(recipes)
            return 0
        if options.raw is None or options.output is None:
            parser.error("--raw and --output are needed (or --list)")
        if not options.raw.is_dir():
            raise UserError(f"--raw {options.raw}: no such folder")
        done, missing, faults = prepare_all(recipes, options.raw, options.output, named=bool(options.tasks))
        if not done and not faults:
            raise UserError(f"--raw {options.raw}: holds the files of no task; --list shows what is read")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{counted(done, 'task')} prepared in {options.output}")
    if missing:
        print(f"{counted(len(missing), 'task')} without raw files:")
        for line in missing:
            print(f"    {line}")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 2 if faults else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from runtime.program import run

    run(main)

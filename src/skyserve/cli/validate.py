"""`sky serve validate` and `sky serve schema`: the Service YAML, checked and described without any controller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from skyserve.cli import faults
from skyserve.cli.options import output_option
from skyserve.cli.session import Session, pass_session
from skyserve.errors import SpecError

if TYPE_CHECKING:
    from skyserve.model.codec import JsonValue
    from skyserve.spec.load import LoadedService


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True, dir_okay=False))
@output_option
@pass_session
def validate(session: Session, files: tuple[str, ...]) -> None:
    """Check Service YAML files, offline. Exit code 2 when one of them is wrong.

    \b
    Examples:
      sky serve validate service.yaml
      sky serve validate examples/*.yaml --output json
    """
    results: list[JsonValue] = []
    wrong = False
    for file in files:
        try:
            loaded = _load(file)
        except SpecError as error:
            wrong = True
            faults.explain(session.screen, error)
            results.append({"file": file, "valid": False, "error": faults.document(error)})
            continue
        results.append({"file": file, "valid": True, "warnings": list(loaded.warnings)})
        for warning in loaded.warnings:
            session.screen.warn(f"{file}: {warning}")
        if not session.as_json:
            session.screen.data(f"{file}: valid")
    if session.as_json:
        session.screen.json({"files": results})
    if wrong:
        raise click.exceptions.Exit(SpecError.exit_code)


@click.command()
@output_option
@pass_session
def schema(session: Session) -> None:
    """Print the JSON Schema of the Service YAML, for editors.

    \b
    Example:
      sky serve schema > service.schema.json
    """
    from skyserve.spec.schema import json_schema

    session.screen.json(json_schema())


def _load(file: str) -> LoadedService:
    from skyserve.spec.load import load_service
    from skyserve.spec.overrides import Overrides

    # Nothing is kept, so the key under which secrets would be compared with later versions does not matter.
    return load_service(Path(file), overrides=Overrides(), fingerprint_key=bytes(32), name_suffix="0000")

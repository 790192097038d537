"""Secrets of a job, by reference: what a recipe or a request holds says where to look, never what is found there.

Ray shows and logs the environment variables of a job as they are (ray-project/ray issues 28276 and 39502), so a value
must never be among them. A reference is ``file:/path`` (a mounted secret of Kubernetes, say) or ``env:NAME``; it is
looked up on every node, by every process of the job, when that starts.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from heliostat.errors import CommandLineError, SecretNotFoundError

VARIABLE = "HELIOSTAT_SECRETS"
"""Holds the references in processes of a job."""
SETUP_HOOK = "heliostat.config.secrets.fill_environment"
"""What Ray calls in each of them."""
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,40}")
_REFERENCE = re.compile(r"(?P<name>[A-Z][A-Z0-9_]*)=(?P<where>file:/\S+|env:[A-Z][A-Z0-9_]*)")


def parse_references(texts: Sequence[str]) -> dict[str, str]:
    """References by the name of the variable that they fill, from ``NAME=file:/path`` and ``NAME=env:OTHER``.

    Raises:
        CommandLineError: one is of another form; what it says is not repeated, since it may be the secret itself.
    """
    found = {}
    for text in texts:
        match = _REFERENCE.fullmatch(text)
        if match is None:
            name = text.partition("=")[0]
            raise CommandLineError(
                f"{name if _NAME.fullmatch(name) else 'a secret'} is not given by reference",
                "Say where the nodes find it: --secret NAME=file:/path or --secret NAME=env:OTHER",
            )
        found[match["name"]] = match["where"]
    return found


def look_up(references: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The values that references stand for, here and now.

    Raises:
        SecretNotFoundError: one of them is not there.
    """
    found = {}
    for name, where in references.items():
        kind, _, place = where.partition(":")
        try:
            value = Path(place).read_text().strip() if kind == "file" else environ[place]
        except (OSError, KeyError, UnicodeDecodeError) as error:
            raise SecretNotFoundError(
                f"{name} is to come from {where}, which this node does not have ({type(error).__name__})",
                "Mount it on every node of the cluster, or change the reference",
            ) from error
        found[name] = value
    return found


def fill_environment() -> None:
    """Set the variables that the references of this process's job stand for."""
    os.environ.update(look_up(json.loads(os.environ.get(VARIABLE, "{}")), os.environ))

from __future__ import annotations

import json
import os
import sys

from lowmem_seq import __version__
from lowmem_seq.runs.environment import PACKAGES, describe_environment, installed_version


def test_the_environment_is_plain_json_and_names_what_decides() -> None:
    environment = describe_environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["format_version"] == 1
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["packages"].keys() == set(PACKAGES)
    assert environment["packages"]["torch"]
    assert environment["logical_cores"] == os.cpu_count()
    assert environment["memory_bytes"] > 2**28
    assert environment["processor"]


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert installed_version("no-such-package-anywhere") is None
    assert installed_version("lowmem-seq") in (None, __version__)

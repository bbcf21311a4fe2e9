"""The reference is complete: every section, piece, setting, recipe, command, error and source."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import generate_reference
import pytest
from pages import anchors

from hansa.core.errors import CATALOGUE
from hansa.core.registry import PIECES, resolve
from hansa.core.schema import fields_of
from hansa.core.settings import SETTINGS
from hansa.server.settings import ServerSettings, variable
from hansa.server.tokens import ROLES

OTHER_PAGES = {"recipe", "source", "metric"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "generated"
    generate_reference.generate(folder)
    return folder


def settings() -> Iterator[tuple[str, str, type]]:
    """Yield (page, heading, dataclass) for everything that has settings."""
    for path, section in generate_reference.sections().items():
        yield "plan", path, section
    for family in generate_reference.FAMILIES:
        for kind in PIECES[family]:
            yield f"{family}s", kind, resolve(family, kind)


def test_every_family_of_pieces_has_a_page() -> None:
    assert set(PIECES) == set(generate_reference.FAMILIES) | OTHER_PAGES


@pytest.mark.parametrize(("page", "heading", "section"), list(settings()), ids=lambda value: str(value)[:40])
def test_every_setting_has_a_help_and_a_row(reference: Path, page: str, heading: str, section: type) -> None:
    text = (reference / f"{page}.md").read_text()
    title = rf"`\[+{re.escape(heading)}\]+`|Top level" if page == "plan" else f"`{re.escape(heading)}`"
    found = [part for part in re.split(r"^## ", text, flags=re.MULTILINE) if re.match(title, part)]
    assert found, f"{heading} has no heading on {page}"
    for name, field in fields_of(section).items():
        assert field.help, f"{section.__name__}.{name} has no Doc"
        assert any(f"| `{name}` |" in part for part in found), f"{section.__name__}.{name} has no row on {page}"


@pytest.mark.parametrize("section", [section for _, _, section in settings()], ids=lambda section: section.__name__)
def test_every_section_and_piece_says_what_it_is(section: type) -> None:
    assert not (inspect.getdoc(section) or "").startswith(f"{section.__name__}("), "a dataclass without a docstring"


def test_recipes_sources_and_metrics_are_listed(reference: Path) -> None:
    for family in OTHER_PAGES:
        text = (reference / f"{family}s.md").read_text()
        assert [kind for kind in PIECES[family] if f"`{kind}`" not in text] == []


def test_commands_and_their_options_are_listed(reference: Path) -> None:
    text = (reference / "commands.md").read_text()
    for name, verb in generate_reference.commands().items():
        assert not name or f"## `hansa {name}`" in text
        assert verb.help
        for parameter in verb.params:
            if parameter.param_type_name == "option":
                assert f"`{', '.join(parameter.opts)}" in text
                assert parameter.help, f"hansa {name} {parameter.opts} has no help"


def test_errors_and_environment_variables_are_listed(reference: Path) -> None:
    assert [code for code in CATALOGUE if code not in (reference / "errors.md").read_text()] == []
    commands = (reference / "commands.md").read_text()
    assert [setting.name for setting in SETTINGS if setting.name not in commands] == []


def test_every_setting_of_the_server_is_listed_with_its_variable(reference: Path) -> None:
    text = (reference / "server-settings.md").read_text()
    assert [name for name in fields_of(ServerSettings) if f"| `{name}` | `{variable(name)}` |" not in text] == []


def test_the_reference_that_is_kept_is_fresh(reference: Path) -> None:
    kept = {page.name: page.read_text() for page in generate_reference.GENERATED.glob("*.md")}
    fresh = {page.name: page.read_text() for page in reference.glob("*.md")}
    stale = sorted(name for name in kept | fresh if kept.get(name) != fresh.get(name))
    assert stale == [], "docs/reference/generated is not what the code says; run: make reference"


def test_every_link_between_pages_that_are_read_as_files_is_alive() -> None:
    docs = generate_reference.GENERATED.parents[1]
    for page in sorted(docs.glob("[!_]*/**/*.md")):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"https?://", target):
                file, _, anchor = target.partition("#")
                assert (page.parent / file).exists(), f"{page} links to {target}"
                if anchor:
                    found = anchors(page.parent / file if file else page)
                    assert anchor in found, f"{page} links to {target}"


def test_every_permission_of_every_role_has_its_place(reference: Path) -> None:
    head, _, *rows = [line for line in (reference / "roles.md").read_text().splitlines() if line.startswith("|")]
    roles = [cell.strip(" `") for cell in head.split("|")[2:-1]]
    assert roles == list(ROLES)
    read = {
        cells[1].strip(" `"): [cell.strip() == "yes" for cell in cells[2:-1]] for cells in (r.split("|") for r in rows)
    }
    for place, (role, allowed) in enumerate(ROLES.items()):
        assert {permission for permission, cells in read.items() if cells[place]} == allowed, role

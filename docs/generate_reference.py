"""Write the reference from the code: plan sections, pieces, recipes, errors, commands, data sources, metrics.

What it writes is kept under version control, so that links work where pages are read as files. `make reference` writes
it anew, and so does every build of the documentation; a test says when that was forgotten.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import annotated_types
import tomli_w
import typer

from hansa.algorithms.plan import Plan
from hansa.authority.settings import AuthoritySettings
from hansa.cli.main import VERBS, build
from hansa.client.policy import Policy
from hansa.core.errors import CATALOGUE
from hansa.core.registry import PIECES, resolve
from hansa.core.schema import Field, fields_of
from hansa.core.sections import DeviceClass
from hansa.core.settings import SETTINGS
from hansa.data import listing
from hansa.decryptor.settings import DecryptorSettings
from hansa.server.settings import ServerSettings
from hansa.server.settings import settings_table as server_settings
from hansa.server.tokens import ROLES, Permission
from hansa.serving.settings import ServiceSettings
from hansa.simulation.devices import PRESETS

GENERATED: Final = Path(__file__).parent / "reference" / "generated"
FAMILIES: Final = {
    "trainer": ("Trainers", "`[trainer]`: what a client does with its examples."),
    "client_optimizer": ("Client optimizers", "`trainer.optimizer`: the local optimizer; it starts afresh every time."),
    "hook": ("Hooks", "`trainer.hooks`: what bends a client's gradients."),
    "sampler": ("Cohort samplers", "`[cohort]`: who takes part in a round."),
    "schedule": ("Schedules", "`[schedule]`: when the server takes a step, and whose reports are part of it."),
    "transform": ("Transforms", "`[[transforms]]`: layers around the wire, outermost last."),
    "aggregator": ("Aggregators", "`[aggregator]`: combines the updates of a round."),
    "server_optimizer": ("Server optimizers", "`[server_optimizer]`: turns the combined update into the next model."),
    "partition": ("Partitions", "`data.partition`: how examples without clients of their own are dealt."),
}
"""Family of pieces -> title and first sentence of its page, in the order of the reference."""

_PLAN: Final = (
    "A plan is a TOML file or a `hansa.Plan`. Keys are written as here; `--set` reaches every one by its path, as in "
    "`--set rounds=20`. A section or piece that is absent has its defaults.\n"
)
_RECIPES: Final = (
    "A recipe is a part of a plan under a name: what a published method fixes. The plan gives the rest, and may change "
    "what the recipe says.\n"
)
_POLICY: Final = (
    "Keys of the file that `hansa client --policy` names (TOML), and of `hansa.client.Policy`. Everything may be left "
    "out; a key that is not in the list is an error. [What the limits mean, exactly]"
    "(../../how-to/run-a-client.md#what-the-limits-limit).\n"
)
_SOURCES: Final = (
    '`data.source`. A source may also be a function of your own, `"package.module:function"`, of the plan\'s `[data]` '
    "and `[features]`.\n"
)
_DEVICES: Final = (
    "`devices.preset`: classes of devices that come with Hansa, in the settings of\n"
    "[`devices.classes`](plan.md#devicesclasses). The numbers are round and illustrative; [where they come "
    "from](../../explanation/simulated-time.md). What is not shown is as its default.\n"
)
_BOUNDS: Final = {
    annotated_types.Ge: ("≥", "ge"),
    annotated_types.Gt: (">", "gt"),
    annotated_types.Le: ("≤", "le"),
    annotated_types.Lt: ("<", "lt"),
}
_PLAIN: Final = {int: "integer", float: "number", str: "text", bool: "true or false"}


def generate(folder: Path = GENERATED) -> None:
    """Write every page whose text has changed, and remove those that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"plan": plan_page(), **{f"{family}s": piece_page(family) for family in FAMILIES}}
    pages |= {
        "recipes": recipes_page(),
        "metrics": metrics_page(),
        "sources": sources_page(),
        "devices": devices_page(),
        "commands": commands_page(),
        "errors": errors_page(),
        "policy": policy_page(),
        "server-settings": server_settings_page(),
        "decryptor-settings": service_settings_page(DecryptorSettings, "a decryptor"),
        "authority-settings": service_settings_page(AuthoritySettings, "an authority"),
        "roles": roles_page(),
    }
    for page in set(folder.glob("*.md")) - {folder / f"{name}.md" for name in pages}:
        page.unlink()
    for name, text in pages.items():
        page = folder / f"{name}.md"
        kept = text.rstrip("\n") + "\n"
        if not page.is_file() or page.read_text(encoding="utf-8") != kept:
            page.write_text(kept, encoding="utf-8")


def sections() -> dict[str, type]:
    """Return every section of a plan by its table's name: "" (the top), "data", "features.columns" ..."""
    return {"": Plan, **dict(_subsections("", Plan))}


def _subsections(prefix: str, section: type) -> Iterator[tuple[str, type]]:
    for name, field in fields_of(section).items():
        inner = _section_of(field)
        if inner is not None:
            path = f"{prefix}.{name}".strip(".")
            yield path, inner
            yield from _subsections(path, inner)


def _section_of(field: Field) -> type | None:
    """Return the section that a field holds, alone or in a list; None for pieces and plain values."""
    if field.family:
        return None
    candidates = [field.inner, *get_args(field.inner)]
    return next((each for each in candidates if isinstance(each, type) and dataclasses.is_dataclass(each)), None)


def plan_page() -> str:
    """Return the page of a plan's sections."""
    parts = [
        "(reference-plan)=\n# The plan\n",
        _PLAN,
    ]
    for path, section in sections().items():
        many = path and get_origin(_without_none(_field_at(path).inner)) is tuple
        title = "Top level" if not path else f"`[[{path}]]`" if many else f"`[{path}]`"
        parts += [f"({_label(path or 'top')})=\n## {title}\n", _docstring(section), settings_table(section, path)]
        if not path:
            parts.append(
                'A plan may name a [recipe](recipes.md) at the top, `recipe = "fedavg"` or '
                "`recipe = { kind = \"fedprox\", mu = 0.1 }`: the plan's own tables are laid over the recipe's.\n"
            )
    return "\n".join(parts)


def _field_at(path: str, section: type = Plan) -> Field:
    *above, last = path.split(".")
    for name in above:
        section = _section_of(fields_of(section)[name]) or section
    return fields_of(section)[last]


def piece_page(family: str) -> str:
    """Return the page of a family's pieces."""
    title, sentence = FAMILIES[family]
    tables: dict[str, type] = {}
    parts = [f"({_label(family)})=\n# {title}\n", f"{sentence}\n"]
    if family != "partition":
        parts.append('A `kind` with a colon, `"package.module:Class"`, names a piece of your own.\n')
    for kind in PIECES[family]:
        piece = resolve(family, kind)
        parts += [f"## `{kind}`\n", _docstring(piece), settings_table(piece, "") or "It has no settings.\n"]
        tables |= dict(_subsections("", piece))
    for path, section in tables.items():
        parts += [f"## `{path}`\n", _docstring(section), settings_table(section, path)]
    return "\n".join(parts)


def settings_table(section: type, path: str) -> str:
    """Return the table of a section's fields: name, type with bounds, default, help."""
    rows = [
        (f"`{name}`", _type_of(field, f"{path}.{name}".strip(".")), _default_of(field), _escaped(field.help))
        for name, field in fields_of(section).items()
    ]
    return _table(("setting", "type", "default", "meaning"), rows) if rows else ""


def _type_of(field: Field, path: str) -> str:
    if field.family:
        page = f"[{FAMILIES[field.family][0].removesuffix('s').lower()}]({field.family}s.md)"
        origin = get_origin(_without_none(field.inner))
        return f"list of {page}s" if origin is tuple else f"table of {page}s" if origin is not None else page
    if _section_of(field) is not None:
        link = f"[section](#{re.sub('[^a-z_-]', '', path)})"
        return f"list of {link}s" if get_origin(_without_none(field.inner)) is tuple else link
    return described(field.annotation)


def described(hint: Any) -> str:  # noqa: PLR0911 - one return for each kind of hint
    """Return a type hint in words, with its bounds."""
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        known = [(mark, *_BOUNDS[type(mark)]) for mark in marks if type(mark) in _BOUNDS]
        bounds = [f"{sign} {getattr(mark, name)}" for mark, sign, name in known]
        bounds += ["not empty" for mark in marks if isinstance(mark, annotated_types.MinLen)]
        return ", ".join([described(inner), *bounds])
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(described(each) for each in arguments if each is not type(None))
    if origin is tuple:
        return f"list of {described(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "table"
    return "any value"


def _default_of(field: Field) -> str:
    if field.required:
        return "**required**"
    value = field.default
    if value is None or value == ():
        return "-"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not field.family:
            return "its defaults"
        target = f"{type(value).__module__}:{type(value).__qualname__}"
        return f"`{next(kind for kind, name in PIECES[field.family].items() if name == target)}`"
    return f"`{json.dumps(value)}`"


def recipes_page() -> str:
    """Return the page of the recipes, with what each fixes."""
    parts = [
        "(recipe)=\n# Recipes\n",
        _RECIPES,
    ]
    for kind in PIECES["recipe"]:
        recipe = resolve("recipe", kind)
        settings = inspect.signature(recipe).parameters.values()
        rows = [(f"`{each.name}`", described(_plain_hint(each.annotation)), f"`{each.default}`") for each in settings]
        parts += [f"## `{kind}`\n", _docstring(recipe), _table(("setting", "type", "default"), rows) if rows else ""]
        parts.append(f"It stands for:\n\n```toml\n{_toml(recipe())}```\n")
    return "\n".join(parts)


def _plain_hint(hint: Any) -> Any:
    return {"float": float, "int": int, "str": str, "bool": bool}.get(hint, hint)


def _toml(tables: Mapping[str, Any]) -> str:
    return tomli_w.dumps(dict(tables))


def metrics_page() -> str:
    """Return the page of the metrics."""
    rows = [
        (f"`{name}`", "higher" if metric.higher_is_better else "lower", metric.needs)
        for name in PIECES["metric"]
        for metric in [resolve("metric", name)]
    ]
    return (
        "(reference-metrics)=\n# Metrics\n\n`evaluation.metrics`. Every metric is computed from sums over clients, so "
        "that simulation and federation tell the same number. Where it is not defined (an AUC of one class), that is "
        "said in place of a number. An AUC is that of scores in 1,000 bins; its largest error is given beside it.\n\n"
        + _table(("metric", "better is", "needs"), rows)
    )


def sources_page() -> str:
    """Return the page of the data sources."""
    parts = [
        "(reference-sources)=\n# Data sources\n",
        _SOURCES,
    ]
    for each in listing():
        rows = [
            ("its clients", each.clients or "none: dealt by `data.partition`"),
            ("settings it takes", ", ".join(f"`{name}`" for name in sorted(each.takes)) or "none"),
            ("settings it needs", ", ".join(f"`{name}`" for name in sorted(each.needs)) or "none"),
            ("origin", each.origin),
            ("licence", each.licence),
        ]
        parts += [f"## `{each.name}`\n", f"{each.summary[0].upper()}{each.summary[1:]}.\n", _table(("", ""), rows)]
        if each.arguments is not None:
            parts += [f"{_docstring(each.arguments)}\n`data.arguments`:\n", settings_table(each.arguments, "")]
    return "\n".join(parts)


def devices_page() -> str:
    """Return the page of the presets of devices."""
    parts = ["(reference-device-presets)=\n# Devices\n", _DEVICES]
    names = [name for name in fields_of(DeviceClass) if name != "name"]
    for preset, classes in PRESETS.items():
        rows = [
            (f"`{name}`", *(_escaped(str(getattr(each, name))) or "always" for each in classes))
            for name in names
            if any(getattr(each, name) != fields_of(DeviceClass)[name].default for each in classes)
        ]
        parts += [f"## `{preset}`\n", _table(("setting", *(each.name for each in classes)), rows)]
    return "\n".join(parts)


def commands() -> dict[str, Any]:
    """Return the commands by name, "" for the whole command line."""
    whole: Any = typer.main.get_command(build([]))
    verbs: dict[str, Any] = {verb: typer.main.get_command(build([verb])) for verb in VERBS}
    found = {"": whole}
    for verb, group in verbs.items():
        command = group.commands[verb]
        found[verb] = command
        found |= {f"{verb} {name}": below for name, below in getattr(command, "commands", {}).items()}
    return found


def commands_page() -> str:
    """Return the page of the command line."""
    parts = ["(reference-commands)=\n# The command `hansa`\n"]
    for name, command in commands().items():
        if name:
            parts.append(f"({_label('hansa-' + name)})=\n## `hansa {name}`\n")
        named = [_flags(each) for each in command.params if each.param_type_name == "argument"]
        usage = " ".join(["hansa", name or "COMMAND", "[OPTIONS]", *named])
        rows = [
            (f"`{_flags(each)}`", _escaped(getattr(each, "help", "") or "") + (" Required." if each.required else ""))
            for each in command.params
            if not getattr(each, "hidden", False)
        ]
        parts += [f"{_prose(command.help)}\n", f"    {usage}\n"]
        parts.append(_table(("argument or option", "meaning"), rows) if rows else "")
    rows = [(f"`{each.name}`", _escaped(each.help), each.default) for each in SETTINGS]
    parts += ["## Environment\n", _table(("variable", "meaning", "default"), rows)]
    return "\n".join(parts)


def _flags(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper()
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    return ", ".join(parameter.opts) + value


def server_settings_page() -> str:
    """Return the page of the server's settings."""
    fields = fields_of(ServerSettings)
    rows = [
        (f"`{name}`", f"`{each.name}`", _escaped(each.help), _escaped(each.default))
        for name, each in zip(fields, server_settings(), strict=True)
    ]
    return (
        "(reference-server-settings)=\n# Settings of the server\n\nKeys of the file that `hansa server --config` names "
        "(TOML, no tables). Each is also an environment variable, which wins over the file; lists are given there with "
        "commas. Paths are from the folder that the server is started in. A key or variable that is not in the list is "
        "an error; `hansa server settings` shows what holds.\n\n"
        + _table(("key", "variable", "meaning", "default"), rows)
    )


def service_settings_page(settings: type[ServiceSettings], named: str) -> str:
    """Return the page of the settings of a service apart from the server."""
    return (
        f"(reference-{settings.noun}-settings)=\n# Settings of {named}\n\nKeys of the file that `hansa {settings.noun} "
        "serve --config` names (TOML, no tables). Paths are from the folder that it is started in. A key that is not "
        "in the list is an error.\n\n" + settings_table(settings, "")
    )


def policy_page() -> str:
    """Return the page of a site's policy."""
    parts = ["(reference-policy)=\n# The policy of a site\n", _POLICY]
    for path, section in _subsections("", Policy):
        many = get_origin(_without_none(_field_at(path, Policy).inner)) is tuple
        title = f"`[[{path}]]`" if many else f"`[{path}]`"
        parts += [f"## {title}\n", _docstring(section), settings_table(section, path)]
    return "\n".join(parts)


def roles_page() -> str:
    """Return the page of the roles of operator tokens."""
    rows = [
        (f"`{permission}`", *("yes" if permission in ROLES[role] else "" for role in ROLES))
        for permission in get_args(Permission)
    ]
    return (
        "(reference-roles)=\n# Roles of operator tokens\n\n`hansa tokens create NAME --role ROLE` gives a token its "
        "role. A call that a token's role does not allow is refused with `HANSA-AUTH-ROLE`. No role reaches into "
        "another tenant.\n\n" + _table(("may", *(f"`{role}`" for role in ROLES)), rows)
    )


def errors_page() -> str:
    """Return the page of the error codes."""
    rows = [
        (f"`{code}`", str(entry.exit_status), str(entry.http), f"`{entry.connect}`", _escaped(entry.meaning))
        for code, entry in CATALOGUE.items()
    ]
    return (
        "(reference-errors)=\n# Errors\n\nEvery error that a user may see has a stable code and a sentence of three "
        "parts: the rule, what was found, what to do. The command ends with the exit status, a server answers with the "
        "HTTP status or the Connect code; in Python, "
        "`HansaError` has `code`, `rule`, `found` and `action`, and a `PlanError` lists all its `problems`.\n\n"
        + _table(("code", "exit status", "HTTP status", "Connect code", "meaning"), rows)
    )


def _docstring(thing: type | Callable[..., Any]) -> str:
    return f"{_prose(inspect.getdoc(thing) or '')}\n"


def _prose(text: str | None) -> str:
    """Return a docstring as Markdown: roles as code, links as links."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.cleandoc(text or "")).replace("\b", "")
    text = re.sub(r"(https?://[^\s,)]+[^\s,).])", r"<\1>", text)
    return re.sub(r"(?<!`)\|", r"\\|", text)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _label(name: str) -> str:
    return "reference-" + name.replace(".", "-").replace("_", "-").replace(" ", "-")


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        rest = [each for each in get_args(hint) if each is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


if __name__ == "__main__":
    generate()

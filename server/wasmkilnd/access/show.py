"""Print who may do what, for `wasmkilnd config`: comment lines, so that its output stays TOML."""

from __future__ import annotations

from wasmkilnd.access.policy import Rule
from wasmkilnd.access.sources import Sources
from wasmkilnd.model import Role

_MOST_RULES = 100


def shown(sources: Sources) -> str:
    """Return the policy in force, a line for each rule, and how many tokens there are."""
    if not sources.on:
        return "# access: everybody may do everything: there is no source of identities"
    lines = ["# access: every caller needs an identity; the first rule that matches it counts"]
    rules = sources.policy.rules
    lines += [f"#   {number}. {_rule(rule)}" for number, rule in enumerate(rules[:_MOST_RULES], 1)]
    if len(rules) > _MOST_RULES:
        lines.append(f"#   and {len(rules) - _MOST_RULES:,} more")
    if sources.tokens:
        lines.append(f"# tokens: {len(sources.tokens.all):,}, with their own roles besides")
    if sources.policy.namespaces:
        lines.append(f"# namespaces: {', '.join(sorted(sources.policy.namespaces))}")
    return "\n".join(lines)


def _rule(rule: Rule) -> str:
    who = " ".join(_plain(pattern.text) for pattern in rule.identities[:20])
    if len(rule.identities) > 20:
        who += f" and {len(rule.identities) - 20} more"
    said = "".join(f" with {_plain(name)}={_plain(value)}" for name, value in rule.claims.items())
    roles = ", ".join(role.value for role in Role if role in rule.roles) or "nothing"
    text = f"{who}{said}: {roles}"
    text += f"; namespace {rule.namespace or 'default'}" if rule.namespace is not None else ""
    return text + (f"; quota {rule.quota}" if rule.quota else "")


def _plain(value: object) -> str:
    """Return a text without line breaks: it becomes a part of a comment."""
    text = str(value)
    return text if text.isprintable() else repr(text)

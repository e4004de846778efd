"""The base of every settings class: immutable, closed to unknown keys, and documented where it is declared.

A component's settings live beside the component, as a `Config` whose attribute docstrings are the user's
documentation. A choice between variants is a tagged union: each variant has `kind: Literal["..."]`, and the
field is `Annotated[A | B, Field(discriminator="kind")]`.
"""

from __future__ import annotations

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Config(BaseModel):
    """Settings whose types mean what they say: 5 is a float; "5" and true are no integers, .inf is no number.

    Use tuples for sequences: a frozen object with a list in it is not frozen. From Python, build it with the
    types it declares (tuples, `Path`); from text, `terminus.config.load.load` reads it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


def unsaid(kind: str) -> BeforeValidator:
    """Makes `kind` the choice of a tagged union where the user does not say which: `{gamma: 3}` without `kind`."""

    def say(value: object) -> object:
        return {"kind": kind, **value} if isinstance(value, dict) else value

    return BeforeValidator(say)

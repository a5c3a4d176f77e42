"""The signature: which raw fields a candidate has, of which type, within which bounds."""

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from transformer.errors import shortened

#: Maximum categories that an error lists in full; of more it lists the first and counts the others.
MAX_LISTED = 8
LISTED_OF_MANY = 5
#: Maximum characters of a category in an error; a longer one is cut.
MAX_CATEGORY_LENGTH = 32

#: How every model of a bundle is read: nothing coerced, nothing unknown swallowed, nothing changed later.
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class Number(BaseModel):
    """A numeric field: a finite number from `minimum` to `maximum`, both included."""

    model_config = STRICT
    #: Datatype of the field's tensor in the V2 protocol.
    datatype: ClassVar[str] = "FP64"

    name: str = Field(min_length=1)
    type: Literal["number"] = "number"
    minimum: FiniteFloat
    maximum: FiniteFloat
    default: FiniteFloat | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "Number":
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is above maximum {self.maximum:g}")
        if self.default is not None and not self.minimum <= self.default <= self.maximum:
            raise ValueError(f"default {self.default:g} is not {self.expected}")
        return self

    @property
    def expected(self) -> str:
        """What a valid value is, in the words of an error message."""
        return f"{self.minimum:g} to {self.maximum:g}"


class Category(BaseModel):
    """A categorical field: one of `categories`."""

    model_config = STRICT
    #: Datatype of the field's tensor in the V2 protocol.
    datatype: ClassVar[str] = "BYTES"

    name: str = Field(min_length=1)
    type: Literal["category"] = "category"
    categories: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    default: str | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "Category":
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("a category stands twice")
        if self.default is not None and self.default not in self.categories:
            raise ValueError(f"default {self.default!r} is not {self.expected}")
        return self

    @property
    def expected(self) -> str:
        """What a valid value is, in the words of an error message."""
        shown = [shortened(category, MAX_CATEGORY_LENGTH) for category in self.categories]
        if len(shown) > MAX_LISTED:
            shown = [*shown[:LISTED_OF_MANY], f"… ({len(shown) - LISTED_OF_MANY} more)"]
        return "one of " + ", ".join(shown)


RawField = Annotated[Number | Category, Field(discriminator="type")]


class Signature(BaseModel):
    """The raw fields of a candidate, in the order in which people read them.

    A field with a `default` may be left out of a candidate; every other one is required.
    """

    model_config = STRICT

    fields: Annotated[tuple[RawField, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _names_once(self) -> "Signature":
        names = [field.name for field in self.fields]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"fields stand twice: {', '.join(twice)}")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The fields' names, in order."""
        return tuple(field.name for field in self.fields)

    def feature_names(self, separator: str) -> Iterator[str]:
        """Names of all features that DictVectorizer can make of these fields, in the fields' order.

        A number gives one feature of its own name, a category one feature ``name=value`` for each value.
        """
        for field in self.fields:
            if isinstance(field, Number):
                yield field.name
            else:
                yield from (f"{field.name}{separator}{category}" for category in field.categories)

"""Signature of a model: the raw fields of a candidate, with their types and bounds."""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from transformer.errors import shortened

#: Maximum categories that an error lists in full; of more it lists the first and counts the others.
MAX_LISTED = 8
LISTED_OF_MANY = 5
#: Maximum characters of a category in an error; a longer one is cut.
MAX_CATEGORY_LENGTH = 32

#: Maximum characters of a name that may be a misspelled field.
MAX_SPELLING_LENGTH = 256
#: Blanks, separators and invisible characters, which do not count in `spelling`.
_SEPARATORS = re.compile(r"[\s_.:/\\\-\u200b-\u200d\u2010-\u2014\ufeff]+")

#: A whole number as a category.
_CODE = re.compile("0|-?[1-9][0-9]{0,17}")
#: Separator between field and category in a feature name of DictVectorizer.
SEPARATOR = "="
#: Names of true and false as bins.
BOOLEANS = ("true", "false")
#: Word for one row of data, if the task has none.
DEFAULT_ROW_NAME = "row"
RowName = Annotated[str, Field(pattern="^[A-Za-z][A-Za-z -]{0,30}$")]
#: Configuration of every model in a bundle: no coercion, no unknown keys, no changes.
STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)


class Number(BaseModel):
    """A numeric field: a finite number from `minimum` to `maximum`, both included and both optional.

    An ``integer`` has only whole numbers.
    """

    model_config = STRICT

    name: str = Field(min_length=1)
    type: Literal["number", "integer"] = "number"
    minimum: FiniteFloat | None = None
    maximum: FiniteFloat | None = None
    default: FiniteFloat | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "Number":
        least, most = self.range
        if least > most:
            raise ValueError(f"minimum {least:g} is above maximum {most:g}")
        if self.default is not None and not least <= self.default <= most:
            raise ValueError(f"default {self.default:g} is not {self.expected}")
        if self.is_whole and self.default is not None and not self.default.is_integer():
            raise ValueError(f"default {self.default:g} is not a whole number")
        return self

    @property
    def datatype(self) -> str:
        """Datatype of the field's tensor in the V2 protocol."""
        return "INT64" if self.is_whole else "FP64"

    @property
    def is_whole(self) -> bool:
        """True if only whole numbers are valid."""
        return self.type == "integer"

    def accepts(self, value: float) -> bool:
        """Return True for a valid number; NaN is none."""
        least, most = self.range
        return least <= value <= most and (value.is_integer() or not self.is_whole)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest valid value. Both are finite, so that no infinity is valid."""
        least = -sys.float_info.max if self.minimum is None else self.minimum
        return least, sys.float_info.max if self.maximum is None else self.maximum

    @property
    def expected(self) -> str:
        """Description of a valid value for error messages: ``0 to 100``."""
        kind = "a whole number" if self.is_whole else "a finite number"
        if self.minimum is None and self.maximum is None:
            return kind
        if self.minimum is None:
            limits = f"at most {self.maximum:g}"
        elif self.maximum is None:
            limits = f"at least {self.minimum:g}"
        else:
            limits = f"{self.minimum:g} to {self.maximum:g}"
        return f"{kind}, {limits}" if self.is_whole else limits


class Boolean(BaseModel):
    """A field that is true or false; as in Python, 1 and 0 are the same."""

    model_config = STRICT
    #: Datatype of the field's tensor in the V2 protocol.
    datatype: ClassVar[str] = "BOOL"
    #: Description of a valid value for error messages.
    expected: ClassVar[str] = "true or false"

    name: str = Field(min_length=1)
    type: Literal["boolean"] = "boolean"
    default: bool | None = None


class _Categorical(BaseModel):
    """Common part of a field of one category and a field of several.

    Attributes
    ----------
    categories
        The known values. One that looks like a whole number may be sent as a number, too.
    open
        True if other values are valid. They have no feature, as in DictVectorizer, and are counted.
    """

    model_config = STRICT
    #: Datatype of the field's tensor in the V2 protocol.
    datatype: ClassVar[str] = "BYTES"

    name: str = Field(min_length=1)
    categories: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    open: bool = False

    @model_validator(mode="after")
    def _unique_categories(self) -> Self:
        check_unique(self.categories, "category")
        return self

    @cached_property
    def codes(self) -> dict[int, str]:
        """The categories that are whole numbers, by that number."""
        return {int(one): one for one in self.categories if _CODE.fullmatch(one)}

    @property
    def expected(self) -> str:
        """Description of a valid value for error messages: ``one of F, M``."""
        shown = [shortened(category, MAX_CATEGORY_LENGTH) for category in self.categories]
        if len(shown) > MAX_LISTED:
            shown = [*shown[:LISTED_OF_MANY], f"… ({len(shown) - LISTED_OF_MANY} more)"]
        return ("a string, for example " if self.open else "one of ") + ", ".join(shown)


class Category(_Categorical):
    """A categorical field: one of `categories`, or with `open` any string."""

    type: Literal["category"] = "category"
    default: str | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "Category":
        if self.default is not None and self.default not in self.categories and not self.open:
            raise ValueError(f"default {self.default!r} is not {self.expected}")
        return self


class CategoryList(_Categorical):
    """A field of any number of `categories`, as a JSON array; each occurrence counts.

    Without another `default`, a missing list is empty, as in DictVectorizer; with null it is required.
    """

    type: Literal["categories"] = "categories"
    default: Annotated[tuple[str, ...], Field(strict=False)] | None = ()

    @model_validator(mode="after")
    def _coherent(self) -> "CategoryList":
        unknown = set(self.default or ()).difference(self.categories)
        if unknown and not self.open:
            raise ValueError(f"default {min(unknown)!r} is not {self.expected}")
        return self


def plural(row_name: str) -> str:
    """Return the plural of a word for a row of data: ``candidates``, ``companies``."""
    if row_name.endswith("y") and row_name[-2:-1] not in "aeiou":
        return f"{row_name[:-1]}ies"
    return f"{row_name}es" if row_name.endswith(("s", "x", "ch", "sh")) else f"{row_name}s"


def check_unique(names: Iterable[str], kind: str) -> None:
    """Raise ValueError if a name occurs more than once; the message names the first."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"duplicate {kind} {name!r}")


@lru_cache(1024)
def spelling(name: str) -> str:
    """Return a name without case, blanks and separators; ``Total Charges`` and ``total_charges`` get one."""
    return _SEPARATORS.sub("", unicodedata.normalize("NFKC", name).casefold())


def same_spelling(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Return the names that differ from one of `others` only in case, blanks or separators.

    Returns
    -------
    The other name of each; names that are in `others` themselves are not there.
    """
    exact = set(others)
    names = [name for name in names if name not in exact and len(name) <= MAX_SPELLING_LENGTH]
    if not names:
        return {}
    known = {spelled: other for other in exact if (spelled := spelling(other))}
    return {name: known[spelled] for name in names if (spelled := spelling(name)) in known}


RawField = Annotated[Number | Boolean | Category | CategoryList, Field(discriminator="type")]
#: A valid value of a field.
Value = str | bool | float | tuple[str, ...]


class Signature(BaseModel):
    """The raw fields of a candidate, in the order in which people read them.

    A field with a `default` is optional; every other field is required.
    """

    model_config = STRICT

    fields: Annotated[tuple[RawField, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _unique_names(self) -> "Signature":
        check_unique(self.names, "field name")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the fields, in order."""
        return tuple(field.name for field in self.fields)

    @cached_property
    def datatypes(self) -> dict[str, str]:
        """V2 datatype of each field."""
        return {field.name: field.datatype for field in self.fields}

    @cached_property
    def required(self) -> tuple[str, ...]:
        """Names of the fields without a default."""
        return tuple(field.name for field in self.fields if field.default is None)

    def misspelled(self, names: Iterable[str]) -> dict[str, str]:
        """Return the names that differ from a field's only in case, blanks or separators, with that field."""
        return same_spelling(names, self.names)

    def check_feature_names(self, separator: str = SEPARATOR) -> None:
        """Check that no two fields have a feature of one name: number ``team=red``, ``red`` of ``team``.

        Raises
        ------
        ValueError
            If two have one; it names both fields.
        """
        owner: dict[str, str] = {}
        for field in self.fields:
            for feature in features_of(field, separator):
                if feature in owner:
                    raise ValueError(
                        f"fields {owner[feature]!r} and {field.name!r} have a feature of the same name, "
                        f"{feature!r}; rename one of the fields"
                    )
                owner[feature] = field.name

    def feature_names(self, separator: str) -> Iterator[str]:
        """Yield the names of all features that DictVectorizer can make of these fields, in their order.

        A number or a boolean gives one feature of the same name, a categorical field one ``name=value`` per
        value.
        """
        for field in self.fields:
            yield from features_of(field, separator)


def features_of(field: RawField, separator: str) -> Iterator[str]:
    """Yield the names of the features of one field, in the order of its categories."""
    if isinstance(field, Number | Boolean):
        yield field.name
    else:
        yield from (f"{field.name}{separator}{category}" for category in field.categories)

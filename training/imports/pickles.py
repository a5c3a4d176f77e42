"""Reader of pickles and of joblib's files, which lists what a file names before it loads anything.

To open a pickle is to run it: a file names functions, and calls them. `scan` goes through the same steps,
with stand-ins for all that the file names, so that it calls nothing. `load` runs the file, and finds nothing
but what its caller allows.
"""

import io
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

#: Module and name of a class or function that a pickle names.
Global = tuple[str, str]

#: Key under which scikit-learn writes its version into the state of each estimator.
_VERSION_KEY = "_sklearn_version"
_ARRAY_WRAPPER = ("joblib.numpy_pickle", "NumpyArrayWrapper")
_LAST_PROTOCOL_OF_PYTHON_2 = 2
#: Flag of a data type whose fields lie as in C.
_ALIGNED = 0x80


class PickleError(Exception):
    """Bytes that are no pickle, or a damaged one."""


@dataclass(frozen=True)
class Scan:
    """Content of a pickle, as far as it can be known without loading it.

    Attributes
    ----------
    names
        Classes and functions that it names, by their current names in Python 3.
    versions
        Versions of scikit-learn that wrote its estimators.
    """

    names: set[Global] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)


def scan(content: bytes) -> Scan:
    """List what a pickle names, without loading it.

    Raises
    ------
    PickleError
        If the content is no pickle.
    """
    found = Scan()
    try:
        _Scanner(io.BytesIO(content), found).load()
    except Exception as error:
        # A damaged or malicious pickle fails in any of its steps.
        raise PickleError(str(error) or type(error).__name__) from error
    return found


def load(content: bytes, find: Callable[[str, str], Any]) -> Any:  # noqa: ANN401 (any object)
    """Load a pickle.

    Parameters
    ----------
    find
        Returns the class or function with a module's name and its own name there, or raises an error.

    Raises
    ------
    PickleError
        If the content is no pickle.
    Exception
        Any error that `find` or the file's own steps raise.
    """
    try:
        return _Loader(io.BytesIO(content), find).load()
    except (EOFError, pickle.UnpicklingError) as error:
        raise PickleError(str(error) or "it ends too early") from error


class _StandIn:
    """Object in place of one that a pickle names (`is_global`) or makes; it keeps nothing."""

    __slots__ = ("is_global",)

    def __init__(self, *, is_global: bool) -> None:
        self.is_global = is_global

    def append(self, item: object) -> None:
        """Pass over what the pickle adds to the object."""

    add = extend = append

    def __setitem__(self, key: object, value: object) -> None:
        """Pass over what the pickle adds to the object."""


class _ArrayWrapper:
    """joblib's description of an array, whose elements follow in the file.

    The format is that of `joblib.numpy_pickle.NumpyArrayWrapper` since joblib 0.10. joblib's own class would
    load a nested pickle without restrictions.
    """

    subclass: Any
    shape: tuple[int, ...]
    order: str
    dtype: np.dtype[Any]
    #: Alignment of the elements in the file; joblib before 1.1 aligned nothing.
    numpy_array_alignment_bytes: int | None = None


# The C implementation has no hooks. joblib builds on this class, too.
_PythonUnpickler: Any = pickle._Unpickler  # noqa: SLF001


class _Reader(_PythonUnpickler):  # type: ignore[misc]
    """Unpickler that reads arrays between the steps of a pickle, as joblib writes them."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        # With any other encoding, a pickle of Python 2 fails before its versions are known.
        super().__init__(file, encoding="latin1")
        self._content = file

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Return the class or function of a name; pickles of protocol 2 and before have Python 2's names."""
        if self.proto <= _LAST_PROTOCOL_OF_PYTHON_2:
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        return _ArrayWrapper if (module, name) == _ARRAY_WRAPPER else self._find(module, name)

    def _find(self, module: str, name: str) -> Any:  # noqa: ANN401
        raise NotImplementedError

    def _nested(self) -> Any:  # noqa: ANN401
        """Read the pickle that follows in the file."""
        raise NotImplementedError

    def load_build(self) -> None:
        """Set the state of the newest object. No pickle of a model sets attributes of a class or function."""
        made = self.stack[-2]
        if isinstance(made, type) or (callable(made) and hasattr(made, "__qualname__")):
            raise pickle.UnpicklingError(f"sets attributes of {made.__qualname__}")
        if isinstance(made, np.dtype):
            self._replace(made, _dtype(made, self.stack.pop()))
            return
        super().load_build()
        if isinstance(made, _ArrayWrapper):
            self.stack[-1] = self._array(made)

    dispatch[pickle.BUILD[0]] = load_build

    def _replace(self, old: object, new: object) -> None:
        """Replace the newest object, which the memo has already."""
        self.stack[-1] = new
        key = next((key for key in reversed(self.memo) if self.memo[key] is old), None)
        if key is not None:
            self.memo[key] = new

    def _array(self, wrapper: _ArrayWrapper) -> Any:  # noqa: ANN401
        """Read the elements of an array."""
        if wrapper.dtype.hasobject:
            return self._nested()
        if wrapper.numpy_array_alignment_bytes is not None:
            self._read_exactly(self._read_exactly(1)[0])
        count = int(np.prod([int(length) for length in wrapper.shape], dtype=object))
        content = self._read_exactly(count * wrapper.dtype.itemsize)
        order: Any = wrapper.order
        array = np.frombuffer(content, wrapper.dtype, count).reshape(wrapper.shape, order=order).copy(order)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _read_exactly(self, count: int) -> bytes:
        content = self._content.read(max(count, 0))
        if len(content) != count:
            raise EOFError(f"has an array of {count} bytes, and only {len(content)} follow")
        return content


def _dtype(made: np.dtype[Any], state: Any) -> Any:  # noqa: ANN401
    """Return a data type with the state that a pickle gives it.

    numpy's own method believes the state: bytes become addresses, and fields lie outside of their row.
    """
    _, order, base, names, fields, size, _, flags = state
    if fields is not None:
        parts = [fields[name] for name in names]
        formats, offsets = [part[0] for part in parts], [part[1] for part in parts]
        content: Any = {"names": list(names), "formats": formats, "offsets": offsets, "itemsize": size}
        return np.dtype(content, align=bool(flags & _ALIGNED))
    content = made.newbyteorder(order) if base is None else base
    return np.dtype(content)


class _Loader(_Reader):
    """Reader that runs a pickle."""

    def __init__(self, file: io.BytesIO, find: Callable[[str, str], Any]) -> None:
        super().__init__(file)
        self._caller_finds = find

    def _find(self, module: str, name: str) -> Any:  # noqa: ANN401
        return self._caller_finds(module, name)

    def _nested(self) -> Any:  # noqa: ANN401
        return _Loader(self._content, self._caller_finds).load()


class _Scanner(_Reader):
    """Reader that calls nothing, and notes all names. Only the types of arrays are real: they are data."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Reader.dispatch)

    def __init__(self, file: io.BytesIO, found: Scan) -> None:
        super().__init__(file)
        self._found = found

    def _find(self, module: str, name: str) -> Any:  # noqa: ANN401
        self._found.names.add((module, name))
        return np.dtype if (module, name) == ("numpy", "dtype") else _StandIn(is_global=True)

    def _nested(self) -> Any:  # noqa: ANN401
        return _Scanner(self._content, self._found).load()

    def _instantiate(self, klass: Any, args: Any) -> None:  # noqa: ANN401
        self.append(self._call(klass, args))

    def load_reduce(self) -> None:
        """Call the function on the stack."""
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_reduce

    def load_newobj_ex(self) -> None:
        """Make an object with arguments by name."""
        self.stack.pop()
        self.load_reduce()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_build(self) -> None:
        """Note the version in the state of an object."""
        made = self.stack[-2]
        if not isinstance(made, _StandIn):
            super().load_build()
            return
        if made.is_global:
            raise pickle.UnpicklingError("sets attributes of a class or function")
        state = self.stack.pop()
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict) and isinstance(version := part.get(_VERSION_KEY), str):
                self._found.versions.add(version)

    dispatch[pickle.BUILD[0]] = load_build

    @staticmethod
    def _call(function: Any, arguments: Any) -> Any:  # noqa: ANN401
        if isinstance(function, _StandIn):
            return _StandIn(is_global=False)
        if function is np.dtype or function is _ArrayWrapper:
            return function(*arguments)
        raise pickle.UnpicklingError(f"calls an object of type {type(function).__name__}")

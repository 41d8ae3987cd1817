"""YAML as the suite reads and writes it: what is a number, and what stays the text that it is.

PyYAML follows YAML 1.1, where `1e-4` is text, `010` is 8 and `1:30` is 90.
"""

__all__ = ["DUMPER", "LOADER", "TEXT_LOADER"]

import re
from typing import Any, ClassVar

import yaml

TAG = "tag:yaml.org,2002:"
WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
OTHERWISE = {f"{TAG}{kind}" for kind in ("int", "float")}


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is 7 times faster
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class LOADER(_Loader):
    """YAML's plain values; a key that is there twice is an error, and not the last one's value."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in OTHERWISE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping whose keys are all there."""
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if key in keys[:i] and key[1] != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key[1]!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class TEXT_LOADER(LOADER):
    """LOADER for options: `key: 1e3` is text as on a command line, and its type says what it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping whose values are texts, lists and mappings; an empty one is None."""
        mapping = super().construct_mapping(node, deep)
        for key, value in node.value:
            if isinstance(value, yaml.ScalarNode) and value.value:
                text = "null" if value.tag == f"{TAG}null" else value.value
                mapping[self.construct_object(key)] = text
        return mapping


class DUMPER(_Dumper):
    """Quotes every text that LOADER, or PyYAML's own loader, would take for something else."""


for cls in (LOADER, DUMPER):
    cls.add_implicit_resolver(f"{TAG}int", WHOLE, list("-+0123456789"))
    cls.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+.0123456789"))

"""How fast the suite is: each file measures one thing, alone or beside a peer's checkout."""

__all__: list[str] = []

"""No components."""


class Component:
    pass

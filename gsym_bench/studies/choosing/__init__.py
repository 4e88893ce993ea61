"""How well `choose_group` finds the right group."""

"""How each kind of measurement is shown, a file per kind behind one protocol: `section.Section`."""

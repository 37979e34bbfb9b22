"""A run as a person reads it: one self-contained HTML file.

`collect` reads a run's folder into the values of `view`; `html` renders them. Plots are inline SVG made here, in the
page's own colours, so that they follow its dark and light dress and render in milliseconds.
"""

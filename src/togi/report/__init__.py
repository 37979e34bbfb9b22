"""The report of a run: one self-contained HTML file.

`collect` reads a run's folder into the classes of `view`; `html` renders them. Plots are inline SVG in the page's
colours, so they follow the dark and light themes and render in milliseconds.
"""

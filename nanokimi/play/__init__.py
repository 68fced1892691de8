"""`nanokimi play`: a web page on this machine, on which models write side by side and can be looked into.

`models` opens the runs, `asked` checks what a visitor asks for, and `desk` lets them write in fair turns. Each tab
has a module of plain functions that make HTML, which the tests call, and one, `tab_...`, that connects them to Gradio.
"""

"""`hilum bench`: how fast this machine is, from the C-STORE of a film to its report in the PACS.

`films` makes them, `peers` plays the routers and the PACS, `run` pushes them through a gateway of its own,
`figures` asks its ledger when each stage was done, `usage` says who used how much of the machine, `rivals`
lets other storage SCPs take the same films, `show` prints and draws.
"""

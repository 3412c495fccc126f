"""The viewer: a server that draws a run or a splat file, and the web client that shows it.

`sessions` is what is looked at (a file, a saved run, a run in training), `protocol` what a browser may ask for,
`layers` the pictures, `server` the port. It never names a method: a scene is anchors with a decoder, splats, or
anything that can render (`scenes`).
"""

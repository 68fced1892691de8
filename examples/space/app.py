from nanokimi.play.server import space

space("tales-1m")

"""All the rules of the tales, in the order in which they are read."""

from nanokimi.data.tales.fables import FABLES
from nanokimi.data.tales.frame import FRAME
from nanokimi.data.tales.modules import MODULES
from nanokimi.data.tales.plots_dared import DARED
from nanokimi.data.tales.plots_lent import LENT
from nanokimi.data.tales.plots_lost import LOST
from nanokimi.data.tales.plots_made import MADE
from nanokimi.data.tales.plots_promised import PROMISED
from nanokimi.data.tales.small_words import SMALL_WORDS

SOURCES = (FRAME, MODULES, SMALL_WORDS, LOST, LENT, PROMISED, MADE, DARED, FABLES)

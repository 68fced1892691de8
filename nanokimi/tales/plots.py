"""All the rules of the tales, in the order in which they are read."""

from nanokimi.tales.fables import FABLES
from nanokimi.tales.frame import FRAME
from nanokimi.tales.modules import MODULES
from nanokimi.tales.plots_dared import DARED
from nanokimi.tales.plots_lent import LENT
from nanokimi.tales.plots_lost import LOST
from nanokimi.tales.plots_made import MADE
from nanokimi.tales.plots_promised import PROMISED
from nanokimi.tales.small_words import SMALL_WORDS

SOURCES = (FRAME, MODULES, SMALL_WORDS, LOST, LENT, PROMISED, MADE, DARED, FABLES)

"""Synonyms: wherever the rules use the first of them, the story chooses one."""

THESAURUS = """
at last | in the end | finally | at long last
at once | straight away | immediately | right away
nobody | no one
somebody | someone
everybody | everyone
began to | started to
did not | didn't
could not | couldn't
was not | wasn't
would not | wouldn't
had not | hadn't
do not | don't
cannot | can't
I am | I'm
I shall | I will | I'll
you are | you're
that is | that's
there is | there's
until | till
because | since
for a long time | for a long while | for quite some time
next morning | the following morning
all the same | even so | nevertheless
nearly | almost
full of | filled with
afraid of | scared of | frightened of
wanted to | wished to | longed to
each of them | every one of them
once more | once again | one more time
again and again | over and over | time after time
every day | each day
beside | next to
as if | as though
jumped | leapt
crept | crawled
looked at | gazed at | stared at
ran home | raced home | dashed home | hurried home
ran off | dashed off | rushed off
ran past | raced past | dashed past
walked home | went home | wandered home | trudged home
walked back | went back | wandered back | trudged back
turned round | turned around | spun round
knocked at | tapped at | rapped at
laughed until | giggled until | chuckled until
pulled | tugged
pushed | shoved
the wind | the north wind | the cold wind | the wild wind
the square | the market square | the old square
the grass | the tall grass | the long grass
the fence | the garden fence | the old fence
the stairs | the steep stairs | the creaking stairs
the shelf | the top shelf | the high shelf
the table | the kitchen table | the long table
the snow | the deep snow | the white snow
the hill | the steep hill
the tower | the tall tower | the grey tower
the middle of | the very middle of
a voice | a hoarse voice | a deep voice | a thin voice
a basket | a wicker basket | a big basket
a note | a short note | a folded note
a rope | a stout rope | a long rope
a bucket | a tin bucket | a wooden bucket
a hole | a small hole
the whole village | the entire village
perhaps | maybe
only one | just one
only a | just a
"""

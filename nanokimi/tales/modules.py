"""Paragraphs that fit into many plots: what happens on the way, and how somebody passes the time."""

MODULES = """
== way
- A goose, [white|grey|fat] and [furious|proud], barred the lane and [hissed like a kettle|spread its
  wings|stretched its neck]. {G} tried to get by on the left, and {g.he} tried to get by on the right. In the end
  {hero} found a crust in {his} pocket, and [while the goose was eating|as soon as the goose bent down], {g.he}
  slipped past.
- Then it rained, in drops as big as [peas|cherries|buttons]. {G} crept under [a hay cart|a hawthorn|the roof of a
  barn] and waited, and in the dry dust {hero} drew a [ship|cow|king] with {his} finger. When {g.he} went on, every
  puddle held a piece of sky.
- A hat, {hat=colour} with a [broad|narrow] brim, came bowling along the road. {hero} caught it [with both
  hands|with {his} foot|on the third try], and round the corner ran a [stout|tall|bald] gentleman, out of breath.
  "My {hat} hat!" <cried> the gentleman. "I was married in it. Thank you, thank you!"
- The plank bridge was [slippery|half rotten|missing its rail]. {G} crossed it on hands and knees and did not look
  at the water, which was [brown|roaring|full of foam], and on the far side {g.he} sat down until {g.his} knees had
  stopped trembling.
- In the middle of the road sat an old woman on a suitcase. "Is this the way to the station?" she <asked>. "It is
  the other way," <spoke> {hero}, and carried the suitcase to the signpost. It was [full of books|as heavy as
  lead|ticking]. "May you find what you are looking for," <spoke> the old woman.
- A farm cart was stuck in the mud, and the horse [looked the other way|had given up|stamped]. {G} pushed from
  behind, the farmer pulled in front, and with a [slurp|pop|jerk] the wheels came free. The farmer, muddy up to the
  [eyebrows|belt], gave {hero} [a turnip|two apples|a handful of nuts] as wages.
- At the crossroads {g.he} stopped. The sign had been turned by the wind. {hero} thought hard. "The church is in the
  east," {he} <said>, "so this is [the right road|the left one]." It took a little longer than it should have, but
  it was true.
- A swarm of [gnats|bees|starlings] hung over the path like smoke. {G} waited for it to lift. Nothing was to be
  heard but that [humming|whirring], and the grass, and far away a [saw|hammer|train].
- A little further on {g.he} met a [pedlar|soldier|tinker] with a tray of [ribbons|combs|tin whistles]. "What will
  you buy?" the [man asked|fellow asked]. "Nothing today," <said> {hero}, "but I like your [songs|boots|beard]." The
  [pedlar|man] laughed and pointed out a short cut.
- There was mist in the hollow, and for a little while {g.he} could see nothing but [white|{g.his} own feet|grey
  shapes]. One of them [turned out to be|was] a cow, which was just as surprised.
- Someone had left a gate open, and {n_calf=number} calves were walking about in the road. {hero} [clapped|waved
  {his} arms|called] and drove them back, counting as they went through: {n_calf} in all. Then {he} shut the gate.

== rest
- Clouds went over, [one like a fish|one like an anvil|one like a sleeping bear]. {hero} ate a [carrot|pear|slice of
  bread] and threw the rest to the ants, who [carried it off in a long line|held a feast].
- The time passed slowly. {hero} counted the [tiles on the roof|flies on the wall|carts that went by] and got as far
  as {cnt=number}, then [a door banged|a cat came|{he} yawned], and {he} had to begin again.
- [A snail crossed the step|A ladybird climbed up a straw|A spider let itself down on a thread] while {he} waited.
  {hero} [held {his} breath|made {himself} small|named it Emperor] and wished it luck.
- From somewhere came the smell of [new bread|tar|cut grass|fried onions]. {hero} thought about [lunch|nothing at
  all|the holidays], and a [fly|bee] walked over {his} knee.
- {hero} sang the song of the [three millers|drowsy cuckoo|big brown bear], all [seven|nine] verses, and where {he}
  had forgotten the words {he} [hummed|made up new ones].
"""

"""Small things that many rules choose from: gestures, noises, food for a pocket, what somebody was doing."""

SMALL_WORDS = """
== ad_ponders
- looked at {him} for a long time
- rubbed {ad.his} chin
- was silent
- took off {ad.his} glasses and wiped them
- coughed
- smiled faintly
- folded {ad.his} arms
- nodded three times
- scratched {ad.his} head
- breathed in, and out again
- looked into the distance
- put {ad.his} head on one side
- blew {ad.his} nose
- counted something on {ad.his} fingers
- hummed a bar of a song
- turned away for a moment

== f_squirms
- went red
- swallowed
- scraped the ground with one foot
- bit {f.his} lip
- looked at {f.his} shoes
- said nothing
- pulled at {f.his} ear
- turned pale
- blinked
- grew very small
- twisted a button
- opened {f.his} mouth and shut it again
- breathed hard

== hero_squirms
- bit {his} lip
- looked at {his} toes
- felt hot all over
- swallowed
- twisted {his} sleeve
- could not find the words
- shook {his} head
- stood on one leg
- took a deep breath
- squeezed {his} thumbs
- went red
- shifted from foot to foot
- counted to {cnt=number}
- wished {himself} far away

== at_night
- turned to the wall
- looked at the ceiling
- counted sheep
- listened to the rain
- kicked off the blanket
- heard every hour strike
- talked to the pillow
- got up and drank some water
- lay quite still
- watched the shadows
- beat the pillow flat
- said the months backward

== passing
- rolling a hoop
- eating a pear
- walking on stilts
- whittling a stick
- juggling with potatoes
- carrying a bucket of tadpoles
- jumping over puddles
- leading a calf on a string
- balancing a broom on one finger
- humming a march
- counting paving stones aloud

== busy
- catching newts
- playing marbles
- picking mushrooms
- tying knots
- plaiting a whip
- fishing without a hook
- drawing in the dust
- throwing stones at a tin
- training a flea
- building a dam
- cleaning a bicycle
- blowing soap bubbles
- looking for four-leaved clover

== snack
- a bun
- a pear
- an apple
- a crust
- half a sausage
- a handful of nuts
- a boiled egg
- a piece of cheese
- a cold potato
- three plums
- a carrot
- a slice of bread
- two radishes
- a bag of cherries
- some raisins
- a biscuit

== sight
- circus
- puppet show
- fire-eater
- brass band
- man with a monkey
- tightrope walker
- parade of lanterns
- wrestling match
- merry-go-round
- camel
- balloon going up
- choir of sailors
- man who swallows swords
- wedding

== noise
- squeaked
- rustled
- dripped
- creaked
- ticked
- scratched
- sighed
- clinked
- gurgled
- hissed
- rattled
- whispered

== tool
- a slate
- a broken spade
- a soup spoon
- a roof tile
- a saucepan lid
- a shovel
- a rake
- a wooden shoe
- two sticks
- a shell

== passer
- the chimney sweep
- a girl with a pram
- the night watchman
- a nun
- a tinker
- the man at the toll bar
- two sailors
- a boy on stilts
- the organ grinder
- a lady with a parrot
- an old soldier
- the milk cart driver
- a pair of twins
- the lamplighter
- a painter under an umbrella

== hurry
- down the lane
- across the square
- past the pump
- over the bridge
- through the churchyard
- along the wall
- behind the brewery
- between the market stalls
- under the arch
- up the steps
- round the bandstand
- by way of the allotments

== how
- simply
- slowly
- quickly
- gravely
- carefully
- thoughtfully
- firmly
- calmly
- earnestly
- solemnly
- after a pause
- after some thought
- in one breath
- without looking up
- with a little cough
- with a nod

== air
- 2~[Somewhere|Far away|Next door|Not far off|Behind the houses|Down by the water] {snd=sound}.
- {Birdy.a=bird} sang in the {leafy=tree}, [and then it stopped|as if for money|always the same three notes|very
  softly].
- 2~The air smelled of {sm=smell} and {sn=smell}.
- Nothing could be heard but [a clock|a fly|the sea|a distant saw|the pigeons|a tap|the kettle|{his} own breath].
- The clouds were the colour of [pewter|milk|old sheets|porridge|doves|slate|lilac|ashes|pearls|wet sand].
- It was one of those days that [have no edges|smell of Sunday|go by like a train|stay with you|begin twice|need a
  hat].
- High up, [a kite|a lark|a hawk|one small cloud|a lost balloon|a row of geese] stood in the sky.
- [Two|Three|Four|Five] [sparrows|pigeons|hens|starlings|jackdaws] were quarrelling over [a crumb|a straw|nothing|a
  worm|a pea].
- A [leaf|feather|scrap of paper|thread of wool|petal|seed] came down slowly and lay there.

== nature
- That was the year when {flx=flower} grew as far as {town=town}, and {bx.a=bird} nested in [every|the oldest]
  {tx=tree}.
- The air smelled of {sm=smell} and {sn=smell}, and [far away|somewhere|beyond the hill] {snd=sound}.
- Old {gx=petname}, old {gy=petname} and even older {gz=petname} [shook their heads|had seen it coming|pretended not
  to listen].
- In the {tx=tree} sat {bx.a=bird} by the name of {gx=petname} and [heard|saw|remembered] it all.
- All this happened in {town=town}, or not far from it, in the days when [animals could talk|nobody had a watch|the
  moon was nearer].

== hush
- [Somewhere|Far away|Next door|Not far off|Behind the houses|Down by the water] {snd=sound}.
- The air smelled of {sm=smell} and {sn=smell}.
- Nothing could be heard but [a clock|a fly|the sea|a tap|the kettle|{his} own breath].

== beat
- For some reason {hero} thought of {idea=idea}.
- {hero} [rubbed|scratched|touched|pinched] {his} [nose|ear|chin|elbow|knee|cheek|left eyebrow], as {he} did when
  {he} was thinking.
- It was as quiet as [a cupboard|a church on Monday|the bottom of a well|a sleeping cat|a library|snow].
- {hero} felt [hot and then cold|as if {he} had swallowed a stone|twice as old|a tickle in {his} stomach|{his} heart
  beat in {his} ears|taller by an inch|a little hungry, of all things|like laughing, and did not].
- [A thought|An idea|A tune|A doubt] came to {hero}, [sat down|stayed for a moment|knocked] and [went away
  again|would not leave|was gone].

== belongings
- In {his} pockets {hero} carried {pa=pocket}, {pb=pocket} and {pc=pocket}.{!own:pocket}
- {His} friends were called {fx=child}, {fy=child} and {fz=child}, and [none of them could sit still|all of them
  talked at the same time|they had a password].{!own:friends}
- In winter and summer {he} wore one {ca=colour} sock and one {cb=colour} one.{!own:socks}
- {He} was saving up for {dream.a=instrument}, and [hummed tunes for it|practised on a broomstick|owned the sheet
  music already].{!own:dream}
- Over {his} bed hung a picture of {pic=picture}.{!own:picture}
- {He} owned {tt.a=toy}, the best in the street, and had painted it {cc=colour} {himself}.{!own:toy}
"""

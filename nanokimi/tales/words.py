"""The word groups of the tales (see notation.py). Within a group, no entry is a prefix of another."""

LEXICONS = """
= girl : name; sex=f
Amina | Anna | Bea | Clara | Daisy | Edith | Ella | Freya | Greta | Hana | Ines | Ivy | Josie | Jana | Kezia
Leila | Lotte | Lucy | Marta | Mira | Nina | Nora | Olive | Orla | Petra | Poppy | Priya | Rosa | Ruby | Sana
Tamsin | Thea | Tilda | Una | Vera | Wanda | Yuki | Zoe | Agnes | Alma | Astrid | Blanche | Carmen | Celia | Cora
Delia | Elsa | Esme | Fatima | Flora | Gerda | Gwen | Heidi | Ingrid | Iris | Jasmine | Kaya | Lena | Luna | Mabel
Magda | Maya | Nadia | Odette | Paloma | Pearl | Renata | Rita | Sofia | Stella | Sylvie | Tess | Uma | Violet
Xenia | Yara | Zadie

= boy : name; sex=m
Anton | Arlo | Ben | Bruno | Caleb | Dario | Emil | Felix | Finn | Gus | Henry | Hugo | Idris | Jack | Jamal
Jonas | Kit | Kofi | Leo | Luca | Max | Milo | Nico | Noah | Omar | Oscar | Otto | Pablo | Quinn | Ravi | Rowan
Silas | Tariq | Theo | Tom | Victor | Zane | Abel | Alfie | Amir | Axel | Basil | Boris | Cedric | Conrad | Dennis
Diego | Edgar | Elias | Ezra | Farid | Fergus | Gabriel | George | Hamish | Ivan | Joel | Karim | Kurt | Lars
Linus | Magnus | Mateo | Ned | Niklas | Oleg | Otis | Paul | Percy | Ralph | Ruben | Samir | Stefan | Timo | Ulf
Walter | Yusuf

= child : name + girl + boy

= adult : name
Mr. Abbot; sex=m; job=carpenter | Mr. Bell; sex=m; job=postman | Mr. Crow; sex=m; job=ferryman
Mr. Dunn; sex=m; job=gardener | Mr. Fisk; sex=m; job=blacksmith | Mr. Hobbs; sex=m; job=shopkeeper
Mr. Marsh; sex=m; job=fisherman | Mr. Okoro; sex=m; job=schoolteacher | Mr. Piper; sex=m; job=clockmaker
Mrs. Anand; sex=f; job=doctor | Mrs. Bloom; sex=f; job=beekeeper | Mrs. Carter; sex=f; job=milkwoman
Mrs. Finch; sex=f; job=dressmaker | Mrs. Holt; sex=f; job=shepherd | Mrs. Lind; sex=f; job=librarian
Mrs. Moss; sex=f; job=potter | Mrs. Pell; sex=f; job=baker | Mrs. Stone; sex=f; job=stationmaster
Mr. Quill; sex=m; job=printer | Mr. Rook; sex=m; job=sexton | Mr. Tate; sex=m; job=saddler
Mr. Vance; sex=m; job=organist | Mr. Wick; sex=m; job=candlemaker | Mr. Ash; sex=m; job=charcoal burner
Mr. Yates; sex=m; job=glazier | Mr. Lamb; sex=m; job=cheesemonger | Mrs. Ruiz; sex=f; job=innkeeper
Mrs. Sharp; sex=f; job=glassblower | Mrs. Thorn; sex=f; job=florist | Mrs. Vale; sex=f; job=weaver
Mrs. Wells; sex=f; job=laundress | Mrs. Young; sex=f; job=vet | Mrs. Ito; sex=f; job=bookbinder
Mrs. Kent; sex=f; job=lockkeeper

= kin : kin
mother; sex=f; call=Mum | father; sex=m; call=Dad | grandmother; sex=f; call=Granny
grandfather; sex=m; call=Grandpa | aunt; sex=f; call=Auntie | uncle; sex=m; call=Uncle

= sibling : kin
little brother; sex=m | little sister; sex=f | small cousin; sex=m | baby sister; sex=f

= dog : pet
Biscuit; sex=m | Bramble; sex=f | Button; sex=m | Clover; sex=f | Dumpling; sex=m | Mustard; sex=m | Nettle; sex=f
Pepper; sex=f | Scamp; sex=m | Tansy; sex=f | Toffee; sex=f | Waffle; sex=m

= age : number
six | seven | eight | nine | ten | eleven

= number : number
three | four | five | six | seven | eight | nine | ten | eleven | twelve | thirteen

= colour : colour
red | blue | green | yellow | orange | purple | white | brown | grey | pink | silver | crimson | violet
turquoise | scarlet | golden | black | cream | lilac | rust-red | emerald | copper | beige | indigo
mustard-yellow | sky-blue

= home : place
in the old mill; short=the old mill | in the crooked house on the hill; short=the crooked house
in the stone house beside the church; short=the stone house
in the wooden house by the lake; short=the wooden house | in the tall house on Market Street; short=the tall house
in the cottage at the edge of the forest; short=the cottage
in the white house by the harbour; short=the white house | in the farmhouse below the hill; short=the farmhouse
in the brick house near the station; short=the brick house
in the thatched house behind the school; short=the thatched house
in the lighthouse at the end of the bay; short=the lighthouse
in the red house at the crossroads; short=the red house
in the narrow house next to the forge; short=the narrow house
in the blue house with seven windows; short=the blue house
in the grey house behind the market; short=the grey house
in the ferryman's house on the bank; short=the ferryman's house
in the green caravan by the orchard; short=the green caravan
in the round house near the windmill; short=the round house
in the attic house over Bridge Lane; short=the attic house | in the old schoolhouse; short=the old schoolhouse
in the boathouse below the weir; short=the boathouse | in the toll house on the heath; short=the toll house
in the hunting lodge among the pines; short=the hunting lodge | in the railway cottage; short=the railway cottage

= nook : place
under the third stair | behind the kitchen clock | inside the blue teapot | in the left boot by the door
beneath the loose floorboard | under the flowerpot on the sill | at the bottom of the sewing basket
behind the row of jam jars | on top of the tall cupboard | inside the cracked jug | between two fat cookbooks
in the pocket of the old raincoat | under the cushion of the rocking chair | in the drawer with the candles
inside the tall clock | under the coal scuttle | behind the loose brick | in the soup tureen
beneath the piano lid | in the umbrella stand | behind the mirror in the hall | under the pile of newspapers
inside the accordion case | in the flour bin

= site : place
by the duck pond | behind the broken windmill | at the edge of the wheat field | near the beehives
below the church tower | next to the ferry landing | by the gate of the churchyard | under the willow tree
behind the hay barn | at the foot of the quarry | behind the old brewery | by the second milestone
among the birches | at the bend of the stream | behind the signal box | by the charcoal kiln

= open : place + site
beside the old well | on the bench outside the bakery | among the blackberry bushes
on the steps of the library | in the ditch along the lane | on the jetty | beside the chestnut stall
near the horse trough | on the village green

= spot : place + open
under the stone bridge | in the hollow oak | under the railway arch | in the ruined chapel
in the empty greenhouse

= toy : object
kite; broke=its tail had torn off; fix=sewed the tail back on
toy boat; broke=the mast had snapped in two; fix=glued the mast together
music box; broke=the little handle had come off; fix=screwed the handle back on
drum; broke=the skin had split; fix=stretched a new skin over it
puppet; broke=two of the strings had snapped; fix=tied on two new strings
rocking horse; broke=one ear had cracked; fix=pegged the ear back in its place
wooden train; broke=a wheel had come off; fix=hammered the wheel back on
lantern; broke=the glass had cracked; fix=put in a new pane of glass
paintbox; broke=the lid had come loose; fix=gave the lid a new hinge
umbrella; broke=three ribs had bent; fix=bent the ribs straight again
telescope; broke=the lens had dropped out; fix=pressed the lens back in
tambourine; broke=the bells had fallen off; fix=wired the bells on again
spinning top; broke=its point had chipped; fix=filed the point until it was sharp
accordion; broke=there was a tear in the bellows; fix=patched the tear with leather

= promise : promise
water the beans; did=watered the beans | feed the hens; did=fed the hens
light the porch lamp; did=lit the porch lamp | sweep the yard; did=swept the yard
close the garden gate; did=closed the garden gate | bring in the washing; did=brought in the washing
wind the tall clock; did=wound the tall clock | milk the goat; did=milked the goat
fill the bird bath; did=filled the bird bath | polish the brass bell; did=polished the brass bell
fill the log basket; did=filled the log basket | lock the rabbit hutch; did=locked the rabbit hutch

= wish : wish
to see the sea; ing=seeing the sea | to ride on a train; ing=riding on a train
to learn the violin; ing=learning the violin | to sleep in a tent; ing=sleeping in a tent
to hold a baby owl; ing=holding a baby owl | to climb the church tower; ing=climbing the church tower
to find a fossil; ing=finding a fossil | to skate on the pond; ing=skating on the pond
to build a treehouse; ing=building a treehouse | to steer a boat; ing=steering a boat
to bake a wedding cake; ing=baking a wedding cake | to catch a falling star; ing=catching a falling star

= errand : object
six brown eggs | a loaf of rye bread | a jar of honey | a bunch of parsley | two lemons | a ball of wool
a packet of pins | a bag of flour | a stick of chalk | a bottle of ink | a string of onions | a pound of plums
a wedge of cheese | a tin of peppermints

= hard : object
a smooth pebble; the=the smooth pebble | a brass button; the=the brass button | an acorn; the=the acorn
a glass bead; the=the glass bead | a tin soldier; the=the tin soldier
a horseshoe nail; the=the horseshoe nail | a walnut shell; the=the walnut shell
a bent sixpence; the=the bent sixpence | a wooden star; the=the wooden star | a tiny bell; the=the tiny bell

= keepsake : object + hard
a cork with a face on it; the=the cork with a face on it | a jay's feather; the=the jay's feather

= hour : time
the church bell rings five; past=the church bell rang five
the street lamps are lit; past=the street lamps were lit | the cows come home; past=the cows came home
the moon is up; past=the moon was up | the last train whistles; past=the last train whistled
the bread is out of the oven; past=the bread was out of the oven
supper is on the table; past=supper was on the table
the ferry makes its last trip; past=the ferry made its last trip | the shops close; past=the shops closed
it is quite dark; past=it was quite dark

= riddle : answer
What runs down the hill all day and never gets tired?; answer=the brook
What has a spine but no bones, and talks without a voice?; answer=a book
What eats wood all evening and dies when it drinks?; answer=the fire
What follows you about all day and goes to bed at noon?; answer=my shadow
What stands on one leg, wears a hat, and loves the rain?; answer=a mushroom
What has four legs in the morning, and still has not taken a step by night?; answer=a table
What goes up when the rain comes down?; answer=an umbrella
What wears a white coat in winter and none in summer?; answer=the roof
What carries its house wherever it goes and never pays rent?; answer=a snail
What knocks at every window and never comes in for tea?; answer=the wind
What gets shorter the longer it stands and shines?; answer=a candle
What sings in the morning when you put it on the stove?; answer=the kettle

= beast : animal
hedgehog; home=under the hedge | squirrel; home=in the walnut tree | rabbit; home=beside the carrot bed
toad; home=under the rain barrel | blackbird; home=in the ivy | mouse; home=behind the woodpile
hare; home=in the long grass | magpie; home=in the poplar | badger; home=below the bank
otter; home=along the stream

= sleeper : animal
hedgehog; home=under the hedge | dormouse; home=in the ivy | squirrel; home=in the walnut tree
mouse; home=behind the woodpile | vole; home=below the bank | shrew; home=beside the carrot bed
weasel; home=under the rain barrel | hamster; home=in the long grass

= climber : animal
squirrel | marten | mouse | dormouse | jackdaw | magpie | weasel | starling | young owl

= bird : animal
robin | wren | sparrow | starling | swallow | goldfinch | thrush | jackdaw | lark | blue tit

= flower : object
daisies | poppies | bluebells | buttercups | primroses | cornflowers | marigolds | tulips | violets | snowdrops

= tree : object
oak | apple tree | chestnut | pear tree | beech | birch | lime tree | maple | cherry tree | walnut tree

= crop : object
pumpkin | sunflower | cabbage | marrow | turnip | melon | leek | cauliflower

= instrument : object
violin | flute | trumpet | cello | oboe | harp | clarinet | banjo | mandolin | recorder

= day : time
Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday

= petname : name
Acorn; sex=m | Barley; sex=m | Bracken; sex=m | Burdock; sex=m | Cricket; sex=m | Dewdrop; sex=f | Fern; sex=f
Hazel; sex=f | Juniper; sex=f | Mallow; sex=f | Moth; sex=m | Pip; sex=m | Rush; sex=m | Sorrel; sex=f
Teasel; sex=m | Thistle; sex=f | Tuft; sex=m | Willow; sex=f | Wisp; sex=f | Yarrow; sex=f | Almond; sex=f
Bilberry; sex=f | Bristle; sex=m | Clove; sex=m | Comfrey; sex=f | Dapple; sex=f | Ember; sex=f | Fidget; sex=m
Flicker; sex=m | Gorse; sex=m | Inkling; sex=f | Jot; sex=m | Kestrel; sex=f | Larch; sex=f | Marjoram; sex=f
Midge; sex=m | Mizzle; sex=m | Nibs; sex=m | Oakley; sex=m | Pebble; sex=f | Pumpkin; sex=m | Quill; sex=m
Ripple; sex=f | Saffron; sex=f | Spindle; sex=m | Thimble; sex=m | Umber; sex=f | Vetch; sex=f | Whisk; sex=m
Yew; sex=f

= mark : mark
spotted ear | crooked tail | bushy tail | white beard | curly tail | black moustache | striped tail | floppy ear
pink nose | feathery tail

= trade : trade
barber; sex=m | butcher; sex=m | chimney sweep; sex=m | greengrocer; sex=f | innkeeper; sex=f | tailor; sex=m
chemist; sex=f | policeman; sex=m | florist; sex=f | cobbler; sex=m

= vegetable : food
carrot | parsnip | beetroot | turnip | radish | celery root | cabbage | swede

= slice : food
gingerbread | plum cake | apple pie | cherry tart | pumpkin bread | lemon sponge | chocolate cake | poppy cake

= elder : kin
big brother | big sister | godmother | godfather | great-aunt

= seathing : object
a shell that hums | a starfish | a piece of amber | a fisherman's knot | a crab's claw | a bottle of sea water
a gull's feather | a sea urchin | a ship's biscuit | a shark's tooth

= line : speech
Who has slept in my boots? | The moon belongs to all of us! | Bring me the bravest cook in the land!
I smell mice, and I smell trouble. | Never wake a king before breakfast! | Give back the golden spoon!
Alas, my tail is not what it was. | Open the gates and let in the goats! | It was not the wind, it was I!
Tonight nobody shall be hungry.

= food : food
radishes with salt | burnt toast | cold noodles | sour cherries | fish pie | pea soup | fried eggs
cucumber sandwiches | porridge with raisins | roast chestnuts | blueberry muffins | mashed turnips | tomato salad
goat cheese | plum dumplings | oat biscuits | pickled gherkins | rhubarb crumble | potato cakes | spinach
buttermilk | barley broth | stewed pears | sardines on toast | carrot cake | mushroom omelette | baked apples
waffles | lentils | beetroot | custard | walnut bread | leek tart | corn on the cob | strawberry ice | liver
kippers | semolina | elderflower syrup | ginger snaps

= pocket : object
a piece of string; the=the piece of string | two marbles; the=the two marbles
a stub of pencil; the=the stub of pencil | a rusty key; the=the rusty key
a snail shell; the=the snail shell | a rubber band; the=the rubber band | half a comb; the=the half comb
a chestnut; the=the chestnut | a paper clip; the=the paper clip | a train ticket; the=the train ticket
a magnet; the=the magnet | a brass bolt; the=the brass bolt | a lump of wax; the=the lump of wax
a clothes peg; the=the clothes peg | a fish hook; the=the fish hook | a feather; the=the feather
a bottle top; the=the bottle top | a thimble; the=the thimble | a dried bean; the=the dried bean
a sea-green bead; the=the sea-green bead | a whistle; the=the whistle | a wooden spool; the=the wooden spool
a folded map; the=the folded map | an old stamp; the=the old stamp
a blunt penknife; the=the blunt penknife | a rabbit's tooth; the=the rabbit's tooth
a pine cone; the=the pine cone | a candle end; the=the candle end | a lead soldier; the=the lead soldier
a conker; the=the conker | a bit of chalk; the=the bit of chalk | a broken watch; the=the broken watch
a peppermint; the=the peppermint | a playing card; the=the playing card | a dog biscuit; the=the dog biscuit
a torch; the=the torch | a tin lid; the=the tin lid | a safety pin; the=the safety pin
a handkerchief with a knot; the=the handkerchief with a knot

= town : place
Applecross | Barrow Hill | Birchley | Blackwater | Brackenford | Bramley Green | Cobbleton | Coldbrook
Cranewater | Dapplewood | Duckington | Elderby | Fallowmere | Fernhill | Foxcote | Goosegate | Greywell | Harrowby
Hazelmoor | Heron Quay | Honeyford | Kettleby | Larkfield | Lowmarsh | Long Acre | Marrowbone | Mossley
Nettlecombe | Oatley | Otterburn | Pebble Bay | Pennywick | Plumtree | Quarry Bank | Ravenside | Rushbrook
Saltby | Sheepwash | Smallwater | Thistledown | Three Bridges | Turnip End | Underhill | Wagtail Cross
Whistlebrook | Willowby | Windle | Yarrowdale

= cat : pet
Marmalade | Inkpot | Sooty | Caramel | Admiral | Duchess | Thimble | Parsnip | Velvet | Moppet | Tiger | Cinnamon
Socks | Pudding | Sardine | Domino | Figaro | Ginger | Hobnob | Jasper | Crumpet | Misty | Nutmeg | Professor
Queenie | Rascal | Smoke | Truffle | Vanilla | Whisper

= sound : sound
a door banged | a dog barked | a baby cried | a clock struck | a window was shut | a cart rattled | a saw sang
a cock crowed | a boat hooted | a bucket fell | a carpet was being beaten | a gate squeaked
a piano was being tuned | an axe fell | a chain clanked | a hen boasted | a train whistled | a pan hissed
a child laughed | a hammer rang | a donkey complained | a choir was practising | a shutter flapped
a woodpecker knocked

= smell : smell
smoke | soap | apples | tar | leather | wet wool | iron | pancakes | moss | fish | cinnamon | new bread | chalk
ginger | horses | paint | oranges | candle wax | coffee | rain | old books | sawdust | onions | thyme

= picture : object
a ship in a storm; the=the ship in the storm | three grey horses; the=the three grey horses
a queen with a cold; the=the queen with a cold | the map of an island; the=the map of the island
a bowl of lemons; the=the bowl of lemons | a sleeping lion; the=the sleeping lion
a stern great-uncle; the=the stern great-uncle | a waterfall; the=the waterfall
an elephant on a ball; the=the elephant on a ball | two boxers; the=the two boxers
a steam engine; the=the steam engine | the man in the moon; the=the man in the moon
a bridge in winter; the=the bridge in winter | a mermaid with glasses; the=the mermaid with glasses
a fat bishop; the=the fat bishop | the battle of the geese; the=the battle of the geese

= idea : thought
a goat on a bicycle | the smell of the first snow | an old moustache cup | the price of elephants
a door without a house | the way pigeons walk | last summer's thunderstorm | the sound of a dropped spoon
a king with only one sock | the inside of a whale | where the wind sleeps | what fish dream of
the longest word there is | an island made of bread | a letter that nobody sends | how far away Tuesday is
who had invented buttons | the weight of a shadow | a very small circus | the face of the town hall clock
a piano full of water | the number after the last one | seven dwarfs in a rowing boat
whether snails have friends | the taste of stamps | a hat with stairs in it | why yesterday never comes back
an orchestra of frogs | the colour of thunder | a giant looking for his glasses

= many : number
twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety

= fingers : number
three | four | six | eight
"""

"""Plots about things that are lost, hidden and found."""

LOST = """
== plot
- The new mittens were {c=colour}, and {his} {k} had knitted them [by lamplight|in a single week|from an old
  jersey|while the soup boiled]. "Do not lose them," {k.he} <said>, and {hero} [laughed|shook {his} head|said that
  could never happen].{!g=hero}{!where:out}{!snow:yes}[ <thread>|]

  It had snowed in the night. {hero} <went> out to look for [tracks|icicles|frozen puddles|somebody to play with].
  Behind the last house {he} took off the left mitten, because [wool is no good for making snowballs|an icicle has
  to be felt with bare fingers|the knot in {his} bootlace had come undone], and hung it on [a fence post|a thorn
  bush|a low branch]. Then [wild geese flew over|a bell began to ring|somebody far off called {his} name], and {he}
  ran off and thought no more of it.

  It was {his} left hand that noticed first, for it was [blue with cold|as cold as a fish|freezing]. At the corner
  stood {f=child} with a [sledge|shovel|broom]. "Have you seen a mitten?" {hero} <asked>. "That depends. What
  colour?" {f} <asked>. "{C}, like this one," <spoke> {hero}[ <how>|3~], and {f} [nodded|thought for a moment|pushed
  back {f.his} hood|blew on {f.his} fingers]. "Then I know who has it. {B.a=sleeper} dragged it away [just
  now|before my eyes|an hour ago]."

  They followed the marks in the snow. And there, {b.home}, the {b} lay curled up in the {c} mitten, [snoring
  softly|with only its nose showing|fast asleep]. {f} put out a hand, but {hero} held {f.him} back. "It needs it
  more than I do," {he} whispered. {!theme:kind}So {he} [walked home with one hand in {his} pocket|gave {f} the cold
  hand to hold|turned round on tiptoe], and the {b} slept on till spring.

  <close>

- The key to the [bell tower|boat shed|greenhouse|museum] was as long as a hand, and {ad=adult}, the {ad.job},
  trusted {hero} with it for one day, because {ad.he} had to [see somebody in the city|visit {ad.his} sister|sign
  some papers]. "Lock up at six," {ad.he} <said>, "and give it to nobody." {hero} felt very
  [important|tall|grown-up] and tied {c.a=colour} ribbon to the key.{!g=hero}{!where:out}

  All morning {he} sat on the step with the key in {his} lap. Then {f=child} came by, <passing>. "Let me hold it,
  only while you [have your lunch|run home for a minute|have a rest]!" begged {f}, and would not stop begging. In
  the end {hero} [gave in|said yes|sighed and agreed].{!key@=f} So now it was {key@} who had the key.

  At a quarter to six {hero} stood before the door, and {he} did not have the key. Who had it? Then {he} remembered:
  {key@} had it! {He} ran <hurry> and found {f.him} <busy>. "It is six o'clock!" panted {hero}. "The key!" {f} felt
  in every pocket and turned [white|red|pale]. There was a hole in one of them.

  They walked back along the way that {f} had come, [heads down|step by step|without a word], until something bright
  showed in the [gutter|grass|mud]. It was {c.a} ribbon, and the key was still on it. The clock struck six as {hero}
  turned the lock.

  {!theme:honest}Next day {ad} came back. "Did you keep it by you the whole time?" <asked> the {ad.job}. {hero}
  could have said yes. "No," {he} <said>. "I lent it to {key@}, and we nearly lost it." {ad} <ad_ponders>. "Then you
  may have it again on {d=day}," {ad.he} <spoke>, "because [you told me|now you will be careful]." <moral>

- {pet=dog} was the kind of dog who is [always hungry|friends with everybody|never where you left {pet.him}], and
  {hero} would not have given {pet.him} away for a pony. You knew {pet.him} at once by {pet.his} {mk=mark}. But on
  {d=day} the gate stood open, and {pet} was gone.{!g=hero}{!where:out}[ <thread>|]

  {hero} <hastened> from door to door. "Have you seen a dog?" {he} <asked>. "I see [twenty dogs a day|a dozen dogs a
  day|nothing but dogs all day]," grumbled the {j=trade}. "What does yours look like?" {hero} told {j.him} about the
  {mk}. The {j} [thought it over|scratched one ear|sneezed]. "A dog like that followed the cart of {ad=adult} this
  morning. There were sausages on it."[~~<way>|]

  The cart stood {p=site}, and {ad} sat on it, [eating bread and mustard|counting {ad.his} money|swinging {ad.his}
  legs]. "Your dog, is it? {pet.He} has eaten {n=number} sausages!" Under the cart lay {pet}, as round as a barrel,
  and {pet.his} {mk} [drooped|was full of mustard|was all that moved]. {hero} <hero_squirms>.[ <beat>|3~]

  "I have no money," {he} <said>, "but I can work." {!theme:fair}So for {n} sausages {hero} [scrubbed the
  cart|carried baskets|led the horse to water] {n} times, once for each, and {pet} had to watch. When it was done,
  {ad} [shook {his} hand|gave {him} a sausage for {himself}|tipped {ad.his} hat to {him}].

  <close>

- Nobody could tell whose purse it was. It lay {p=spot}, it was made of {c=colour} leather, and there were
  {n=number} coins in it, for {hero} counted them [twice|with care|one by one]. With so much money {he} could have
  bought [a mouth organ|a pocket knife|a cake as big as a wheel|a ticket to the circus].{!g=hero}{!where:out}

  "Finders keepers," <spoke> {f=child}, who [had come up behind|was looking over {his} shoulder|never missed
  anything]. "Buy something for both of us!" {hero} <hero_squirms>. "Somebody is looking for this," {he} <said>.
  "Somebody is crying, perhaps."{!g=hero+f}[~~<way>|]

  They asked <passer>, but no one had lost a thing. Only {ad=adult}, the {ad.job}, was [turning out {ad.his}
  pockets|crawling about under a bench|staring at the ground]. "Is anything wrong?" {hero} <asked>. "My purse!"
  <cried> {ad}. "All my wages were in it." {hero} held it behind {his} back. "What colour was it, and how many coins
  were inside?"

  "{C}," <spoke> {ad} at once, "with {n} coins." {hero} put it into {ad.his} hand. The {ad.job} <ad_ponders>, and
  then gave {hero} and {f} a coin each. "And where was it?" "{P}," they said together. {ad} slapped {ad.his}
  forehead. "Of course. I [ate my lunch|took off my jacket|fed the sparrows] there!" {!theme:fair}"Finders keepers
  is a silly rule," <said> {f} on the way back.

  <close>

- For the birthday of {his} {k}, {hero} had made a [clay pot|bookmark|bird box|pair of slippers|calendar] all by
  {himself}, in {t=number} evenings. It was wrapped in {c=colour} paper. A present must be hidden well, so {he} hid
  it {p=nook}. "There," {he} <said>. "Not even I would look there."

  And that was true. The weeks went by, with [measles|a school play|apple picking|a visit from the cousins], and
  when the birthday came, {hero} stood in the middle of the room and could not remember. {He} looked [in the bread
  bin|behind the curtains|in every shoe]. {He} looked [under the bed|inside the stove|on the window ledge]. {He}
  found [a spoon|half a biscuit|a dead wasp|last year's marbles], but no present. "What are you looking for?" asked
  {his} {k}. "Nothing," {he} <spoke>, <sad>.[ <hush>|2~]

  "When I cannot find a thing," said {k.he}, "I go back in my head. Where did you stand? What could you see?" {hero}
  shut {his} eyes. {He} had been [out of breath|in {his} socks|eating a plum]. It had been [raining|late|very
  quiet]. {He} had put out {his} hand, so, and then... "I know!" <cried> {hero}. And there it was, {p}, in its {c}
  paper, with a little dust on top. {!theme:careful}{!hidden:yes}[ <beat>|3~]

  "You made this?" <asked> {his} {k}. "It took me {t} evenings," {he} <said>, "and one whole morning more." <moral>

- Everyone was waiting for the library book. It was about [whales|pirates|comets|castles|volcanoes], there was only
  one of it, and {ad=adult} had lent it to {hero} first. "After you comes {f=child}," {ad.he} <said>, and wrote it
  down. "Bring it back on {d=day}."{!g=hero}{!where:out}

  {hero} took it along to read {p=open}. The story was so good that {he} forgot [the time|{his} lunch|the whole
  world]. When {his} {k} called, {he} jumped up and ran, and the book stayed behind. In the night it
  [rained|poured|hailed]. {He} heard it drumming on the roof, and sat up in bed. The book! It was still
  {p}.[ <hush>|2~]

  By morning it was [as thick as a loaf|swollen like a sponge|wet through], and {n=number} pages had come loose.
  {hero} dried them over the [stove|radiator|kettle] and pressed them under [the bread board|a flat iron|{his} own
  bed]. They dried all wavy. "I could say that it was so before," {he} thought.{!theme:honest}[ <beat>|3~]

  But on {d} {he} went to {ad} and put the book on the desk. "I left it out in the rain," {he} <said>, "and {n}
  pages are loose." {ad} <ad_ponders>. "Then you will help me glue them in," {ad.he} <said>, "and you will explain
  it to the next reader." That was {f}, of course. {f} [read it in one night|said it smelled of adventure|did not
  mind a bit]. <moral>

- A ring had vanished from the window sill of {ad=adult}, the {ad.job}, a thin gold ring with {c.a=colour} stone. "I
  took it off [to knead dough|to wash up|to plant onions]," {ad.he} <said>, "and when I looked again, it was not
  there." Some people said that {f=child} had been seen near the window. {f} <f_squirms>.{!g=hero}{!where:out}

  "{f} never took it," <spoke> {hero}[ <how>|3~]. "{f.He} gives back even [borrowed string|pencil stubs|lost pins]."
  So {he} sat down across the lane to watch, with <snack>. {He} put a silver button on the same sill and waited. The
  sun moved. {His} foot went to sleep.[~~<rest>|]

  <later> there was a flutter of black and white, and a magpie sat on the sill. It cocked its head, took the button
  and flew to the top of the {t=tree}. {hero} <hastened> after it and climbed. The branches [swayed|creaked|grew
  thinner and thinner], but {he} [did not look down|held on tight|counted them to keep calm]. In the nest lay [a
  teaspoon|a bottle top|a thimble], {his} button, and something with {c.a} stone.{!theme:friend}[ <beat>|3~]

  {ad} put on the ring and did not know what to say. "You can say sorry," <spoke> {hero}[ <how>|3~], "but not to
  me." So the {ad.job} went to {f}'s house, [with {ad.his} hat in {ad.his} hand|with a basket of eggs|slowly], and
  said it. "How did you know?" {f} asked {hero} afterwards. "I did not know," <spoke> {hero}[ <how>|3~]. "I know
  you." <moral>

- The letter was for somebody else. It had [fallen|slipped|been pushed] through the wrong door, {c.a=colour}
  envelope with {n=number} stamps from far away, and the name on it was {ad=adult}.{!g=hero}{!where:out} "Leave it
  on the shelf for the postman," <spoke> {his} {k}[ <how>|3~]. But {hero} said, "What if somebody is waiting for
  it?"[ <thread>|]

  Nobody knew the house. {hero} asked <passer>, who sent {him} [up the hill|over the tracks|round the pond], and
  then {he} asked at the inn, where they sent {him} back again.

  {He} was about to give up when {he} saw a tiny house {p=site}, with its shutters closed. {He} knocked. "No
  visitors," called a voice. "I am not a visitor," {hero} called back. "I am the post." Slowly the door opened.
  There stood {ad}, who had once been the {ad.job} and was now very old. {ad.He} looked at the {c} envelope, and at
  all the {n} stamps, and {ad.his} hands [shook|trembled so much that {hero} had to open it].

  "It is from my [son|daughter|brother]," <spoke> {ad}[ <how>|3~]. "{Y=number} years I have waited for it. Will you
  read it to me? My eyes are no good." So {hero} sat down on the step and read. It said, [I am coming home|forgive
  me|you have a grandchild]. And the shutters were opened, every one.{!theme:kind} "{Y} years," {hero} thought, "and
  it nearly stayed on our shelf."

  <close>

- The sheep of {ad=adult} were so tame that a child could mind them, and there were {n=number} of them. That day the
  child was {hero}. "In the evening you count them," {ad} <said>. "If there are {n}, you whistle and bring them
  down. If there are not, you look." And {ad} gave {him} <snack> and went to market.{!g=hero}{!where:out}

  It was a [hot|long|still] day, and the grass smelled of [thyme|clover|mint]. {hero} [cut a pipe from an elder
  twig|made a chain of {fl=flower}|learned the whole sky by heart|built a castle of pebbles]. The shadows grew. Then
  {he} counted, and there was one too few. {He} counted again, touching each one on the nose. One too few.[~~<way>|]

  Far off, something bleated. The lost one stood [on a ledge|in a bramble bush|up to its belly in a bog], the
  smallest of all, and could go neither forward nor back. {hero} was [shaking|pale with fear|cold to the
  fingertips], but {he} took off {his} {c=colour} jersey, tied one sleeve round {his} wrist, and
  [hauled|dragged|heaved] until the lamb was free. {!theme:brave} Then {he} whistled.[ <beat>|3~]

  "All {n}?" <asked> {ad} at the gate. "All {n}," <spoke> {hero}[ <how>|3~]. "And why does one of them wear {c.a}
  jersey?" "[It was cold|It had lost its own on the thorns|It was so frightened]," {he} <said>, and {ad}
  [laughed until the sheep ran off|counted the coins into {his} hand, and added one|said no more, but in winter
  there came a parcel of wool]. <moral>

- Inside the {tr=tree} behind the school, rolled up in a bottle, {hero} found a map. It was drawn in {c=colour} ink.
  There was a [skull|mermaid|compass rose] in one corner, and in the other stood: {n=number} steps north, and
  dig.{!g=hero}{!where:out} "North of what?" <asked> {f=child}, who could [read maps|smell secrets|dig like a
  badger]. "There is a cross," {hero} <said>. "Look: {p=site}."{!g=hero+f}

  {P}, they put their heels together and walked. {hero} took {n} steps north and stood in [a puddle|nettles|a heap
  of leaves]. {f} took {n} steps north and stood somewhere else altogether, for {f.his} legs were [longer|shorter].
  "Pirates are bigger than we are," <spoke> {f}[ <how>|3~]. "So we must jump." They jumped {n} times, and dug with
  <tool>.

  At last there was a [clink|thud|scraping noise]. It was a tin, tied with {c} string, and in the tin were [three
  marbles and a whistle|a tooth and two feathers|a lead knight and a candle end], and a note: Whoever finds this is
  my friend. The name below was that of {ad=adult}, and next to the name stood: {a=age} years old. {hero} and {f}
  stared. {ad} was the {ad.job} now, and the {ad.job} had white hair!

  They carried the tin to {ad.him}. "I waited [all summer|a whole year|until it snowed] for somebody to come," said
  {ad} [quietly|with a smile|and blew {ad.his} nose]. "I was {a}, and we had just moved here, and I knew nobody."
  "Well," <spoke> {f}[ <how>|3~], "now we have come." {!theme:friend}And they had tea with the {ad.job} every
  {d=day} after that. <moral>
"""

"""Plots about wishing, making, learning and trying again."""

MADE = """
== plot
- Into the old well you could throw a coin and wish, and {hero} had saved a coin for it. [?trait:wish {He} still
  wanted what {he} had wished for at breakfast: {wish}.{!w=wish}{!trait:done}|?trait:food/cat/riddle/- {He} knew
  exactly what {he} wanted: {w=wish}.]{!g=hero}{!where:out}

  The well stood {p=site}, and somebody was there before {him}. It was {f=child}, who leaned over the edge and
  [wept|stared down|sighed]. "I want to wish that my {sib=elder} gets well," {f} <said>, "and I have no coin."
  {hero} closed {his} hand tightly. It was the only coin {he} had. {He} thought of {w.ing}, and {he} thought of
  {f}'s {sib}.

  Plop, went the coin. It had been {hero}'s, but it was {f} who [closed both eyes|whispered|held {f.his} breath] and
  wished. "And you?" {f} asked. "I shall save up again," <spoke> {hero}[ <how>|3~], "and it is a very old well. It
  can wait."[ <beat>|3~]

  In {m=number} weeks the {sib} was well. Somebody must have talked, for on {d=day} there was a note in {hero}'s
  shoe. It said: Come with us. We have heard about the wish, and about the coin. And so {hero}'s wish came true
  after all: {w.ing}, with {f} and {f}'s {sib} at {his} side. {!theme:kind}

  <close>

- The biggest {cr=crop} at the fair wins the {c=colour} ribbon, and {hero} had never won anything. So in May {he}
  put a seed into the ground, and beside it a stick with {his} name.{!g=hero} {He} [watered it|sang to it|told it
  stories], and picked off the snails by hand, {n=number} of them.

  On the other side of the fence grew the {cr} of {f=child}. It was bigger. Every day it was a little bigger, and
  {hero} could not [sleep|eat]. One night {he} took {his} {k}'s garden shears and climbed over the fence. There it
  was [in the moonlight|in its bed|among its leaves], so large and so quiet. One snip would be enough. {hero} stood
  for a long time. {He} thought of the seed, and the {n} snails, and what the ribbon would look like
  then.[ <hush>|2~]

  {He} climbed back, and in the dark {he} [trod on a rake|fell into the beans|stepped on the cat]. A window opened.
  "Who is there?" called {f}. "It is me," <spoke> {hero}[ <how>|3~]. "I wanted to spoil yours. I did not do it."
  Nobody spoke for a while. "I thought of it, too," <spoke> {f}[ <how>|3~].[ <beat>|3~]

  On the day of the fair the {c} ribbon went to [{ad=adult}|a man from the next village|the twins from the mill].
  "Next year we plant one together," <said> {f}. {!theme:honest}And they divided the shears between them,
  so to speak: {hero} kept one half in {his} shed, and {f} the other. <moral>

- Bread is easy, thought {hero}, until {he} baked one.{!g=hero} It was for {ad=adult}, the {ad.job}, who [had a bad
  back|had lent them a ladder|was alone that week], and {he} would not let {his} {k} help. The first loaf was [as
  flat as a plate|raw in the middle|as black as coal]. The goat would not touch it.

  "What did you leave out?" <asked> {his} {k}. "Nothing," {he} <spoke>. Then {he} thought. "The [yeast|salt|water]?"
  So {he} began again. The second loaf rose and rose, [lifted the lid|crept over the edge|looked out of the oven],
  and fell in a heap. {hero} sat on the floor, <sad>, with {n=number} spots of flour on {his} face. "In this
  kitchen," said {his} {k}, "I burned {m=number} loaves before one was any good. I have never told
  anybody."[ <hush>|2~]

  {hero} laughed, and got up, and weighed everything on the {c=colour} scales. {He} kneaded until {his} arms ached.
  {He} waited, which was the hardest. And when {he} tapped the third loaf underneath, it sounded like a [drum|little
  door|hollow log].[ <beat>|3~]

  {!theme:try}{He} carried it across the street in a cloth. "Is it your first?" <asked> {ad}, with {ad.his} mouth
  full. "My third," <spoke> {hero}[ <how>|3~]. "And that is nothing. Some people," and {he} looked round for {his}
  {k}, "need {m}." <moral>

- Everyone in class could whistle but {hero}. {f=child} could do it on {n=fingers} fingers, so that dogs
  came.{!g=hero} "It is easy," {f} <said>. "You only have to blow." {hero} blew, and out came [air|spit|a sort of
  hiss]. The others [giggled|held their sides|were kind about it, which was worse].

  {He} practised [in the cellar|in bed, under the blanket|in the cow shed, where only cows could hear]. {He} tried
  it with {his} tongue up and with {his} tongue down. {His} {k} taught {him} to [wet {his} lips|think of a
  keyhole|hold {his} head like a bird], and it hissed. On {d=day} {he} gave up, and on the day after {he} began
  again.[ <hush>|2~]

  Then came the school outing to [the caves|the ruins|the great moor], and a fog with it. "Stay together!" called
  the teacher, but {f} had gone [to look at a snake|after a ball|round a corner], and did not come back. They
  shouted, and the fog swallowed it. {hero} put two fingers into {his} mouth. {He} [thought of a keyhole after
  all|did not think at all|thought only of {f}], and blew.

  It was so loud that the teacher dropped her {c=colour} bag. {hero} whistled again, and again. And out of the fog
  came first a dog that nobody knew, and then {f}, [pale|muddy|holding its tail]. "I can do it on {n} fingers," said
  {f}, "but I could not have done that." {!theme:try}<moral>

- If you have {n=number} barrels, said {f=child}, then you have a raft. {hero} had the barrels, {f} had the rope,
  and {e=child} had [a sail|a pole|a plank].{!g=hero}{!where:out} But each of them wanted to be captain.

  So {hero} built alone on the left, {f} pulled alone on the right, and {e} sat on the plank and gave orders to
  nobody. The thing they pushed into the water had {n} barrels, and it had no captain, or rather it had three. It
  [turned round twice|groaned|leaned to one side], and then it came apart. {hero} swam. {f} swam. {e} held on to a
  barrel and [yelled for help|spouted like a whale|lost both boots].[ <air>|2~]

  They sat on the bank and dripped. "The knots were bad," <spoke> {hero}[ <how>|3~]. "They were my knots," <spoke>
  {f}[ <how>|3~]. "The barrels were at the wrong end," <spoke> {f}[ <how>|3~]. "I put them there," <spoke>
  {hero}[ <how>|3~]. "And I did nothing at all," <spoke> {e}[ <how>|3~], and that was what made them
  laugh.[ <beat>|3~]

  {!theme:together}On {d=day} they began anew. {hero} placed the barrels, all {n} of them, because {he} had an eye
  for it. {f} tied, and {e} tested each knot. They hoisted {c.a=colour} shirt. The raft floated [like a duck|as
  steady as a table|all the way to the mill]. "And who is captain now?" they were asked from the bridge. "The one
  with the {c} shirt," they called, and it went from one to the next, every hour. <moral>

- In the school play {hero} was the [lion|giant|emperor|dragon], and had only one sentence to say. It was:
  {line=line}{!g=hero} {He} said it to the [mirror|hens|soup]. {He} said it on the stairs, one word to each step,
  until {his} {k} could say it, too.

  The hall was full. {hero} stood behind the {c=colour} curtain and looked through a hole. There were [a
  hundred|more than two hundred|rows and rows of] faces. Something dropped from {his} head into {his} stomach, and
  it was the sentence. "I have forgotten it," {he} whispered to {f=child}, who was [the horse|a tree|the moon] and
  had nothing to say. "Then look at me," {f} whispered back, "and not at them."[ <hush>|2~]

  The {c} curtain rose. Somebody [coughed|laughed|blew a trumpet]. It was {his} turn. {hero} walked to the front,
  and {his} head was as empty as a bucket. In the third row sat {his} {k}, and {k.his} lips were moving. {hero}
  looked at {f}. {f} [winked|nodded|rolled {f.his} eyes]. And up it came, from {his} stomach to {his} mouth:
  "{line}"

  How they clapped! {hero} bowed, [stepped on {his} own cloak|lost {his} crown|bumped into the king], and they
  clapped even more. {!theme:friend}"You were wonderful," <spoke> {f}[ <how>|3~]. "And you," <spoke>
  {hero}[ <how>|3~], "had the harder part." <moral>

- The seed was as small as a [flea|full stop|crumb], and {ad=adult}, the {ad.job}, had counted {n=number} of them
  into {hero}'s hand. "They need dark," {ad.he} <said>, "and water, and time. Mostly they need time." {hero} planted
  them in {c.a=colour} pot.{!g=hero}

  Next morning {he} looked. There was earth in the pot. The morning after, there was earth. On {d=day} {he} [scolded
  the pot|put a lamp over it|sang to it] and dug one up to see whether it was alive, which did no good. {f=child}
  came, looked in, and said, "You planted [pepper|dirt|nothing]." {hero} pushed the pot {p=nook} and would not speak
  of it.[ <hush>|2~]

  And there it was forgotten. It was [the end of winter|the day of the spring cleaning|weeks later] when {his} {k}
  called, "{hero}! What is growing here?" For something [thin and pale|green|long and white] was stretching out its
  neck, toward the crack of light. "My seeds!" <cried> {hero}. {He} had left them {p}, and they had grown in the
  dark all the same.[ <beat>|3~]

  {He} stood the {c} pot in the sun and gave it water, and this time {he} did not dig. By June there were
  {fl=flower}, so many that {f} [had to sneeze|took back what {f.he} had said|asked for seeds]. "{N} seeds, and one
  I dug up," {hero} <said>. {!theme:patient}{!living:yes}"That one I am sorry for." <moral>

- At the concert {hero} was to play the {i=instrument}, and {f=child} was to sing. For {n=number} weeks they had
  practised the same song, and every time, at the same spot, {hero} played [too fast|a wrong note|three notes too
  many].{!g=hero} "Never mind," <spoke> {f}[ <how>|3~]. But {f.he} did mind. {hero} could see it.

  "Play me only that spot," <spoke> {his} {k}, who was [shelling peas|darning socks|peeling potatoes]. {hero}
  played it. "Slower." {He} played it so slowly that [you could have taken a nap between two notes|the dog howled|a
  snail could have danced to it]. "Once more." {He} played it {m=number} times before supper, and {m} times after
  supper, and in {his} dreams {his} fingers went on.[ <hush>|2~]

  On the evening itself {f} wore {c.a=colour} sash and was [white to the lips|as stiff as a broom]. They began. The
  spot came nearer and nearer. {hero} forgot to breathe, and then it was past, and {he} had not even noticed it. It
  was {f} who stopped. The words were gone. {f} looked at {hero} with round eyes.[ <beat>|3~]

  {!theme:try}What would a bad musician have done? {hero} simply played the spot again, slowly, as if it belonged
  there, {n} weeks of practice in every note, until the words came back to {f}. Nobody had noticed. "You saved me,"
  said {f} afterwards, and gave {him} the {c} sash. <moral>
"""

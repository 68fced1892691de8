"""Shorter plots: small adventures, and people who help each other."""

DARED = """
== plot
- 3~Fog came up from the river so thick that {hero} could not see {his} own hand.{!g=hero} And {f=child} was still
  out there, {p=spot}, <busy>. {hero} took the {c=colour} lantern from its hook. "It is dark," <spoke> the voice in
  {his} head. "It is only white," {he} told it, and went.

  {He} called, and listened. {He} felt the [hedge|wall|railing] with one hand and did not let go of it. At last a
  small voice answered. {f} sat {p} and was [crying|shaking|singing to keep awake]. "I saw something {c} in the
  fog," {f} <said>, "and I thought it was a star that had lost its way." "It was only me," <spoke> {hero}.
  {!theme:brave}{!dark:yes}<moral>

- 3~On the roof of the school sat a kitten, and it cried so loudly that nobody could do sums.{!g=hero} {ad=adult},
  the {ad.job}, brought a ladder, but it was {n=number} rungs too short. {f=child} offered it [milk|a fish head|a
  ball of wool]. The kitten cried.

  "It wants to come down where it went up," <spoke> {hero}[ <how>|3~], and went to look. Behind the building {he}
  found [a drainpipe with scratches|a plum tree that leaned on the gutter|a heap of crates]. {He} climbed up, and
  {f} held {his} feet, and {e=child} held {f}'s. {hero} put {his} {c=colour} scarf over the edge like a
  road.[ <air>|2~]

  The kitten looked at it. It put out one paw, and then the next, and it [walked|slid|tumbled] along the {c} scarf
  and straight down {hero}'s collar. "If the ladder had not been {n} rungs too short," <spoke> {ad}[ <how>|3~], "I
  should have broken my neck for it." {!theme:together}<moral>

- 3~Thump, it went over {hero}'s bed. Thump, thump. It was {n=number} minutes past midnight.{!g=hero} {hero} drew
  the blanket up to {his} nose and thought of [robbers|ghosts|a giant with one boot]. {He} thought of calling {his}
  {k}. Then {he} thought that {his} {k} might be just as frightened, and that would be worse.

  So {he} took the {c=colour} poker, which was cold, and climbed the stairs to the attic, [counting them|one at a
  time|on {his} bare toes]. Something moved behind the trunk. {hero} lifted the poker. There sat {b.a=climber}, with
  its head stuck in a jam jar, and it [backed|hopped|bumped] into everything there was.[ <hush>|2~]

  "Hold still," whispered {hero}, and pulled. Pop! The {b} looked at {him} for one moment, and was gone through the
  gap in the tiles. "What was all that noise?" <asked> {his} {k} at breakfast. "Somebody was locked up in the jam,"
  {hero} <said>. {!theme:brave}{!dark:yes}The {c} poker leaned by the bed. <moral>

- 3~After {n=number} days of rain the footbridge was gone. On one bank stood {hero}, and on the other stood
  {f=child}, and they had never missed a {d=day} together.{!g=hero} "Can you hear me?" shouted {hero}. "No!" shouted
  {f}.

  {hero} had a ball of string and {c.a=colour} kite. {He} [tied|knotted] the one to the other and let it rise, and
  the wind did the rest. {f} caught it on the far side. To the string they tied a cord, and to the cord a rope, and
  to the rope a basket. First the basket carried <snack> across. Then it carried [a sandwich|an answer|the other
  half] back. On {d} [the schoolmaster|the priest|the mayor] came to look, and by evening the whole village was
  using it.[ <air>|2~]

  "And who built it?" <asked> {ad=adult}, the {ad.job}. "The wind," <spoke> {f}[ <how>|3~]. "And {c.a} kite," <said>
  {hero}. {!theme:together}They had not missed a single {d}, flood or no flood. <moral>

- 3~What a goat cannot eat has not been invented. {hero} was told to hold one by its rope, only for [a minute|a
  moment], and at the same time {he} was holding the new {c=colour} hat of {ad=adult}, the {ad.job}.{!g=hero} Then a
  [brass band|fire engine|hay wagon] went by, and {he} turned {his} head.

  When {he} turned it back, the goat was chewing. Out of its mouth hung a bit of {c} ribbon. {hero} [jerked|hauled]
  at it, and the goat [jerked, too|thought this a fine game|swallowed]. There was nothing left but the
  [feather|buckle|brim].[ <air>|2~]

  "My hat," <spoke> {ad}[ <how>|3~]. "I was looking the other way," <spoke> {hero}[ <how>|3~]. "That is no excuse,
  it is only what happened. I shall work for a new one." The {ad.job} considered the goat. "How does it look?"
  {ad.he} asked at last. "It looks well fed," <spoke> {hero}[ <how>|3~]. {ad} began to shake, and it was with
  laughter. "I never liked that {c}. Come on {d=day}, and help me choose another." {!theme:careful}<moral>

- 3~Snow had covered the door of {ad=adult}, the {ad.job}, up to the handle, and no smoke rose from the
  chimney.{!snow:yes}{!g=hero}{!where:out} {hero} saw it from the window. "{ad.He} is old," <spoke> {his}
  {k}[ <how>|3~], "and we are not the only ones who could go." "But we are the ones who have seen it," <spoke>
  {hero}, and took the {c=colour} shovel.[ <thread>|]

  It was {n=many} steps to the gate in summer. Now each one had to be dug. {hero} [puffed|sang|groaned] and dug, and
  by noon {his} shovel knocked on wood. "Who is there?" asked a thin voice. Inside it was as cold as outside. {hero}
  carried [logs|peat|coal] and made a fire, and put the kettle on. The {ad.job} [held both hands to the flames|drank
  three cups|wiped {ad.his} nose].[ <hush>|2~]

  "I counted your steps," <spoke> {ad}[ <how>|3~]. "I heard the shovel, and I counted. There were {n}. I have never
  looked forward so much to a number." {!theme:kind}The {c} shovel stayed there, in case.

  <close>

- 3~Somebody new sat in the last row. "This is {f=child}," <spoke> the teacher, and wrote the name on the board. {f}
  came from far away and knew only {n=number} words of their language. At break {f} stood by the [wall|pump|fence]
  and looked at {f.his} shoes.{!g=hero}

  {hero} went over. {He} did not know what to say, so {he} said nothing, and took {his} {c=colour} ball out of its
  net. {He} rolled it to {f}. {f} rolled it back. After [a while|the tenth time], {hero} pointed and said, "Ball."
  "Ball," <spoke> {f}[ <how>|3~], and then a word that [sounded like rain|had a cough in the middle|hummed]. {hero}
  tried to say it, and it came out so badly that {f} [grinned|laughed aloud|clapped].[ <air>|2~]

  So they went on: tree, shoe, [sandwich|snail|bell]. For every word {f} learned, {hero} learned one, too. On
  {d=day} somebody asked {f} what was the first thing that {f.he} had understood here. "Not the {n} words," <said>
  {f}. {!theme:friend}"{C.a} ball." <moral>

- 3~They were not speaking. {hero} had said that {f=child} [cheated|was a baby|sang like a crow], and {f} had said
  that {hero} [was a cabbage|never shared|had ears like a donkey], and now there was a chalk line across the
  yard.{!g=hero} It was {c=colour}, and nobody was allowed to cross it.

  [For the first hour|At first] that was splendid. By noon it was boring. On {hero}'s side was the swing, and on
  {f}'s side was the [tap|gate|ladder]. {hero} swung, and there was nobody to push. {f} drew hopscotch squares up to
  {n=number}, and there was nobody to throw a stone.[ <air>|2~]

  "{f} is a word I do not say," <spoke> {hero} at supper. "Which word do you not say?" <asked> {his} {k}. In the
  night it rained. In the morning {hero} looked out, and the {c} line was gone. By the tap stood {f}, and looked at
  the place where it had been. "It washed off," <spoke> {f}[ <how>|3~]. "Yes," <spoke> {hero}[ <how>|3~]. "Shall we
  draw [a ship|a dragon|another eleven squares] instead?" {!theme:friend}{!quarrel:yes}<moral>

- 3~Round the lake and back was the race, {n=number} miles of it, and {hero} had trained since [Easter|the
  thaw].{!g=hero}{!where:out} {He} ran second. In front of {him} there was nothing but the {c=colour} shirt of
  {f=child}.

  Near the [reeds|boathouse|third bend] {f} gave a cry and sat down in the dust, holding one foot. Now the way was
  free! {hero} ran past. {He} ran ten steps, then twenty. The bell tower was in sight already, and {he} could hear
  the people. But in {his} head {he} still heard that cry. {He} [slowed down|stopped|said a bad word], and turned
  round.[ <air>|2~]

  "You could win," <spoke> {f}[ <how>|3~]. "I know," <spoke> {hero}[ <how>|3~]. "Put your arm over my shoulder."
  They came in last, on three legs, so late that [the ribbons had been taken down|the judges were packing up|the
  soup was cold]. The cup had gone to {e=child}. But {ad=adult}, the {ad.job}, who had seen it all from a boat, rang
  a bell for the two of them. {!theme:kind}And the {c} shirt hangs in {hero}'s room, for {f} gave it to {him}, after
  all those {n} miles. <moral>

- 3~At the station a very small child stood all alone and held {c.a=colour} balloon.{!g=hero} With {his} {k}, {hero}
  was waiting for the train [to the seaside|to the mountains|to the city]. It was to leave from platform {n=number}.
  "Are you lost?" {he} <asked>. "No," <spoke> the child. "My family is lost."

  "What is your name?" "{nm=child}." "And what does your family look like?" "Tall," <spoke> the child, and a tear
  ran down to its chin. {hero} thought. Then {he} said, "We cannot see them, because we are too short. But they can
  see your balloon." {He} took a ball of [string|wool] from the luggage, and they let the balloon rise, up past the
  clock, up to the [glass roof|pigeons|iron beams].[ <air>|2~]

  "{nm}!" cried somebody at once. Through the crowd came a [man with a pram|woman without a hat|whole row of
  sisters], and then there was so much hugging that a suitcase fell over. By that time the train on platform {n} had
  gone. {!theme:kind}"There is another one," <spoke> {his} {k}[ <how>|3~], "but there is only one {c} balloon that
  high." <moral>

- 3~When the storm came, the keeper of the lighthouse lay in bed with a fever, and out there were {n=number}
  boats.{!g=hero} {hero} had brought the keeper's soup. "The lamp," whispered the keeper, who was {ad=adult}'s
  cousin. "Somebody must [turn it|wind it up|keep it burning]. Every quarter of an hour, until it is light."

  It was dark on the stairs, and the wind [howled in the keyholes|shook the tower|threw foam at the glass]. {hero}
  had never been so high up. {He} took hold of the crank, which was painted {c=colour}, and leaned on it with all
  {his} weight. It turned. The light swung out over the water like a long white arm. {He} [sang|counted|said the
  alphabet], so as not to fall asleep.[ <hush>|2~]

  Toward morning they came in, first one and then another. {hero} pressed {his} nose to the glass and counted: {n}
  boats. {He} sat down by the {c} crank and fell asleep, and {ad} carried {him} home.
  {!theme:brave}{!dark:yes}<moral>

- 3~"Whoever guesses how many beans are in the jar shall have the {t=toy}," <spoke> {ad=adult}, the {ad.job}, and
  put both of them in the window.{!g=hero} {f=child} guessed a thousand. {e=child} guessed a million. {hero} went
  home and thought.

  {He} filled a cup with beans and counted: there were {n=many} in a spoon, and so many spoons in a cup. {He} looked
  at the jar [from the left|through the glass|from all sides] and tried to see how many cups it held. {He} wrote it
  all on [an envelope|{his} arm|the back of a calendar]. It took until {d=day}. "You are making work of a game,"
  <spoke> {e}[ <how>|3~].[ <hush>|2~]

  {hero} was wrong, too. But {he} was wrong by only {m=number}. "How did you do that?" <asked> {ad}, and {hero}
  explained about the {n} beans in a spoon. {ad} held out the {t} to {him}. {hero} looked at {f}, who [was trying
  not to look|had wanted it so much|swallowed]. {!theme:share}"It is for all three of us," {he} <said>. "On Sundays
  it is mine." <moral>

- 3~{hero} was the shortest in the class, and {d=day} was the day when they were measured.{!g=hero} {He} stood on
  {his} toes. "Heels down," <spoke> the nurse. "You are a little under the {c=colour} line." {f=child}, who was over
  it, [patted {his} head|called {him} an egg cup|said it did not matter].

  [That same week|On the next day] a [coin|ring|key] belonging to {ad=adult}, the {ad.job}, rolled through the
  grating in front of the school. {ad.He} lay on {ad.his} stomach, and could not reach it. {f} tried, but {f.his}
  shoulders stuck. "Let me," <spoke> {hero}[ <how>|3~]. {He} breathed out, and went down between the bars like [a
  letter into a box|a cat|soap].[ <air>|2~]

  It was dark below, and wet. Something with {n=number} legs, or more, ran over {his} hand. {He} felt about in the
  [leaves|slime|puddles], and there it was. When they had pulled {him} up again, {ad} shook {his} dirty hand for a
  long time. "I was just the right size," {he} told {his} {k}. {!theme:brave}{!dark:yes}"It is quite useful, to be
  under the {c} line." <moral>

- 3~The {tr=tree} in the yard was to be cut down, because it was in the way of [a new garage|the tram|a wall]. A man
  had painted {c.a=colour} cross on it.{!g=hero} {hero} had climbed in it since {he} could walk.

  "Nobody listens to one child," <spoke> {f=child}. "Then there must be more of us," <spoke> {hero}[ <how>|3~]. They
  went from door to door. They asked {ad=adult}, the {ad.job}, who had [been kissed|learned to read|slept off many a
  Sunday] under it. They asked the {j=trade}, who had fallen out of it twice. Each of them [wrote a name on the
  list|put a thumb in ink]. At the end there were {n=number} pages of names.

  On {d=day} the man came back with his saw. All round the trunk stood the street, hand in hand. The man read the
  list, all {n} pages, right through. He [scratched his neck|coughed|took off his cap]. Then he fetched a brush, and
  painted out the {c} cross. "There is room on the other side," he said. {!theme:together}<moral>
"""

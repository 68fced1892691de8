"""Fables: short stories about animals who speak."""

FABLES = """
== fable
- A young mole [by the name of|called|who was named] {hero=petname} had heard of the stars, and wanted to see one.
  "Nonsense," <spoke> {his} {k=kin}. "A mole has no need of stars. A mole needs [worms|a warm bed|good claws]." But
  {hero} dug upward. <nature>

  {He} dug for {n=number} nights. {He} dug past the roots of the {tr=tree} and past an old {c=colour} boot. When
  {he} put {his} head out at last, it was [raining|cloudy|snowing], and all was black above as well as below. {hero}
  sat there, <sad>.

  "What are you waiting for?" <asked> {f=petname}, an owl. "For a star," {he} <said>. "I have dug for {n} nights."
  The owl was silent, for {f.he} had meant to eat {him}. "They are behind the clouds," <spoke> {f} then. "I have
  seen them from up there. I shall tell you about them until they come." And the owl told, and the mole listened,
  and toward morning the sky [tore open|cleared|was swept clean].

  "Oh," <spoke> {hero}[ <how>|3~]. That was all. When {he} was home again, {his} {k} asked what it had been like.
  {!theme:patient}"Go up past the {c} boot," {he} <said>, "and wait." <moral>

- The fox {f=petname} could play, and the badger {hero=petname} had {i.a=instrument}. "Lend it to me for one night,"
  begged the fox. "There is a dance [in the clearing|at the mill pond]." {hero} lent it. "Bring it back before the
  moon is [full|new]," {he} <said>, and the fox promised by all {f.his} whiskers.{!k@=f} <nature>

  The moon came, and the {i} did not. The badger waited {n=number} days. Then {he} walked to the den of {k@}. It was
  quiet there. {f} lay in the back, with {f.his} paws over {f.his} eyes. "It fell into the [brook|fire|gorge],"
  {f.he} moaned. "There is nothing left but this." It was one {c=colour} peg. "And I did not dare to tell you."

  {hero} turned the peg over. {He} was angry for as long as it takes to eat a plum. "Those {n} days were worse than
  this," {he} said at last. "I thought that you were no longer my friend." {!theme:friend}They cut a new one out of
  [willow|pine|elder] wood, and it has one {c} peg, and people say it sounds a little sad. <moral>

- Squirrels are forgetful, and {hero=petname} was the most forgetful of them all. In autumn {he} hid {n=number} nuts
  {p=spot}, and said it aloud three times so as to remember. Up in the {tr=tree}, a jay called {f=petname} was
  listening. <nature>

  Then came the snow. {hero} woke up hungry, and could not think of it. Was it by the wall? Was it in the moss? {He}
  dug [here and there|in the wrong places|until {his} paws were sore]. "I know where they are," <spoke> {f} from
  above. "It costs you half." "Half is too much," <spoke> {hero}[ <how>|3~]. "Then look for them," <spoke> the jay.

  {He} looked until evening. The wind [whistled|bit|blew right through {him}]. "Half," {he} said then. "{P},"
  <spoke> {f}[ <how>|3~], and flew ahead. They dug out {n} nuts and ate them together, and it turned out that two
  keep each other [warm|company], too. {!theme:share}{!food:yes}"Next year," <spoke> the jay, "tell me at once."
  <moral>

- "I shall be at the pond on {d=day}, before the dew is dry," <spoke> the frog {hero=petname} to the old heron
  {f=petname}, who had let {him} go. "Only let me say goodbye to my {k=kin} first." It had been a foolish thing to
  let {him} go, and a [foolish|strange] thing to promise. <nature>

  "Stay here!" <spoke> {his} {k}[ <how>|3~], and so did {n=number} cousins. "A promise to a heron is no promise."
  {hero} sat in the mud and considered it. {He} [shivered|swallowed|puffed out {his} cheeks]. "It was not the heron
  who promised," {he} <said>. "It was me."

  On {d} the grass was still wet when {hero} hopped to the pond. {f} was standing there on one leg. Nobody had ever
  come back. The heron looked at {him} for a long while, first with the left eye, then with the right. "I am not
  hungry," {f.he} <spoke>. "Sit down, and tell me about your {n} cousins." {!theme:promise}<moral>

- The hare {f=petname} was fast, the tortoise {hero=petname} was slow, and both were tired of being told so. "Let us
  swap for once," <spoke> the hare. "Today I go slowly, and you make haste." They set out for the {fl=flower} on the
  hill, {n=number} fields away. <nature>

  {hero} made haste. {He} fell over a [root|molehill|snail], rolled down a bank and lay on {his} back in a ditch,
  waving {his} legs. {f} went slowly. For the first time {f.he} saw that there were [strawberries|beetles like
  jewels|tiny bells] in the grass, and {f.he} heard somebody calling from a ditch. At full speed {f.he} had always
  run past.

  "Thank you," <spoke> {hero}, right side up again. "I have seen the sky for an hour. I never look at it." "And I
  have counted the beetles," <spoke> {f}[ <how>|3~]. They reached the {fl} at dusk, after {n} fields, and neither
  could say who had come first. {!theme:friend}<moral>

- There once was an owl who was afraid of the dark. {hero=petname} was the name of that owl, and {he} slept at night
  and hunted by day, and all the others laughed. "Only {n=number} steps," <spoke> {his} {k=kin} every evening, "as
  far as the {tr=tree}." But {hero} shut {his} eyes and stayed in the hole. <nature>

  One night {f=petname}, a mouse, [squeaked|wept|called for help] outside. "{C.a=colour} snake is in our house, and
  the children are in there!" {hero} could hear them. {He} put out one foot. {He} counted the steps aloud, and at
  {n} {he} stood by the {tr}, and the dark [was only air|did nothing to {him}|smelled of leaves].

  {He} spread {his} wings and hooted, so that the {c} snake [shot into the nettles|forgot where it was going|turned
  to stone with fright]. "You will not eat us?" <asked> {f}. "Not tonight," <said> {hero}.
  {!theme:brave}{!dark:yes}"Tonight I am busy being surprised." <moral>

- Of all the geese, {hero=petname} was the one who always asked. "Why do we fly south?" {he} asked {his} {k=kin}.
  "We always have," was the answer. "Why in a wedge?" "One does." So that year {hero} flew alone, {n=number}
  wing-beats to the left of the others. <nature>

  It was [hard|tiring|lonely], for the wind came at {him} from all sides. {He} grew slower. Below was {c.a=colour}
  barn, and on its roof {he} came down, because {he} could do no more. There sat {f=petname}, an old crow. "Let me
  see your wing," <spoke> the crow. "Nothing is broken. You have been flying without a front goose, that is all.
  Each of them makes a little [hole|road] in the air for the next."

  "Nobody told me," <spoke> {hero}[ <how>|3~]. "Somebody should have," <spoke> {f}[ <how>|3~]. Three days later the
  next wedge passed over, and {hero} joined it at the end. When a young one asked why, {he} told it all: the {n}
  wing-beats, and the {c} barn. {!theme:together}<moral>

- The smallest mouse in the church, {hero=petname}, wished for a bell, because everything there had one. {His}
  {k=kin} had only {c.a=colour} bead, and gave {him} that. It did not ring. {hero} wore it all the same, on
  {n=number} hairs plaited together. <nature>

  Then the cat {f=petname} came to live in the church. The mice held council. "Somebody must hang a bell on the
  cat," they said, as mice always say. "We have no bell," <spoke> {hero}[ <how>|3~]. "But has anyone asked the cat
  what it wants?" They [laughed until they had to hold on to the pews|thought {he} had gone mad]. {hero} went out on
  the altar step alone, with {his} bead shining.

  "Stop there," <spoke> {f}[ <how>|3~]. "What is that {c} thing?" "It is for you," <spoke> {hero}[ <how>|3~]. {He}
  laid it down. {f} rolled it to the left, and {f} rolled it to the right, and it was the best game since
  kittenhood. So they agreed on it: as long as there was {c.a} bead to play with, nobody would be eaten.
  {!theme:brave} And {n} hairs were enough to buy a whole church. <moral>

- A snail named {hero=petname} was carrying a letter. It was from {his} {k=kin} to {f=petname}, the beetle, who
  lived {n=number} gardens away, and it said: Come to my feast on {d=day}. "You will never be in time," said
  {c.a=colour} butterfly. "I am on my way," <said> {hero}. <nature>

  {He} crept through the [lettuce|rhubarb|mint] and did not eat. {He} crept through the [rain|heat|night] and did
  not sleep. Sometimes the butterfly came and said, "Still here?" {hero} did not answer, for it takes breath to
  answer.

  On {d} {he} reached the stone of {f}, and gave {f.him} the letter. "But that is today," {f} <said>, "and it is {n}
  gardens away! Get on my back." And the beetle opened {f.his} wings, and they flew over all the gardens and past
  something {c}, which stared. {!theme:patient}They were there before the soup. <moral>

- Once a bear could not fall asleep for the winter, and that bear was {hero=petname}. <nature> {hero} lay on the
  left side, and {he} lay on the right. {He} counted {n=number} salmon. Outside it was already snowing. So {he} got
  up and knocked at the house of {f=petname}, the hare. "What do you do when you cannot sleep?"

  "I think of what I have forgotten to do," <spoke> {f}[ <how>|3~], "and then I do it." {hero} scratched {his} ear.
  There had been something. It had to do with {d=day}. It had to do with something {c=colour}. "I borrowed {c.a}
  blanket from you," {he} said slowly, "and I promised to bring it back on {d}."

  "I know," <spoke> {f}, who was [trembling with cold|wearing three scarves|blue around the nose]. The
  bear went and fetched it the same hour, through {n} snowdrifts, and tucked the hare in. Then {he} lay down.
  {!theme:promise}Before {he} could count one single salmon, {hero} was [snoring|asleep]. <moral>
"""

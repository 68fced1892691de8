"""Plots about things that are borrowed, broken, mended, swapped and shared."""

LENT = """
== plot
- It was the {t=toy} of {f=child}, and {hero} was allowed to borrow it until {d=day}.{!g=hero} "Only be careful,"
  <spoke> {f}[ <how>|3~]. "My {sib=elder} gave it to me." {hero} was careful all morning. But at noon [{he} tripped
  over the cat|the table tipped|{he} wanted to show off a little], and there was a [crash|crack|nasty sound]:
  {t.broke}.

  {hero} hid the {t} {p=nook}, where nobody ever looked, and tried to think of something else. It did not work. The
  soup tasted of {t}, and even the clock ticked {t}, {t}, {t}.[~~<rest>|2~]

  "You are as white as flour," <spoke> {his} {k} [at bedtime|in the evening|that night]. "Where is the {t}?" {hero}
  looked at the floor. "It is {p}," {he} whispered, "and it is broken." Then {he} told everything. {His} {k} [was
  not angry|nodded slowly|only sighed], and fetched the toolbox. Together they [sat up late|worked until ten|got
  glue on everything], and in the end they {t.fix}.[ <beat>|3~]

  {!theme:honest}{hero} took it back on {d}. "I broke it," {he} <said>, "and we mended it. You can see the place,
  here." {f} <f_squirms>. "Now it is stronger than before," <spoke> {f}[ <how>|3~], "but do not tell my {sib}.
  [Borrow it again|Come and play with me], if you like." <moral>

- Rain makes chains, they say, and this chain began when {hero} lent {his} {c=colour} umbrella to {f=child}, who had
  [a cold|a new coat|a long way to go].{!u@=f}{!g=hero} "Bring it back some time," <spoke> {hero}[ <how>|3~], and
  ran home between the drops.

  But on the bridge {f} met {ad=adult}, the {ad.job}, with [a basket of bread|a baby in a shawl|a box of books]
  getting wet. So {ad} got the umbrella.{!u@=ad} And {ad} met {e=child}, who was <passing> and had no hat. So {e}
  got the umbrella.{!u@=e} {e} did not know whose it was, and stood it in the corner behind the door.[ <hush>|2~]

  Next week it rained again, and {hero} wanted to go [to school|to the fair|to choir]. "Where is your umbrella?"
  asked {his} {k}. "I shall ask {f}," <spoke> {hero}[ <how>|3~]. {f} sent {him} to {ad}, and {ad} scratched {ad.his}
  head. "Now who was that? Ah, yes. Go to {u@}." And so {hero} knocked, wet to the bones, at the door of
  {u@}.{!theme:kind}[ <beat>|3~]

  "Is it yours?" <cried> {e}. "It kept me dry all the way!" In the corner stood the {c} umbrella, and tied to it
  were [a bag of nuts|a bunch of {fl=flower}|a paper bird] from {f}, a [bun|jar of jam|boiled egg] from the
  {ad.job}, and a [drawing|letter|feather] from {u@}. {hero} went home in the middle of the rain with {his} arms
  full. <moral>

- Crash went the window of {ad=adult}, the {ad.job}. The ball that had done it was {c=colour}, and everybody knew
  that only {hero} had {c.a} ball. Three children had been playing. {f=child} ran to the left, {e=child} ran to the
  right, and {hero} stood there with {his} mouth open.{!g=hero}

  The ball lay inside, among [the teacups|broken glass|the geraniums]. {hero} could run, too. {He} could say that
  somebody had [stolen|borrowed|found] it. But it was {he} who had kicked, and not {f}, and not {e}. {He} took one
  breath, went up the steps, and rang. {ad} opened. In {ad.his} hand was the {c} ball.[ <air>|2~]

  "I kicked it," <spoke> {hero}[ <how>|3~]. "I can pay with [my savings|all my marbles|my pocket money for a year]."
  The {ad.job} looked past {him} into the empty street. "Were you alone?" "I kicked it alone," <spoke>
  {hero}[ <how>|3~]. {ad} <ad_ponders>. "New glass costs {n=number} coins, or {n} mornings of work. What do you
  say?"[ <beat>|3~]

  Next morning {hero} came to work, and there on the step sat {f} with a broom, and {e} with a bucket. "We were
  playing, too," muttered {f}. With three of them, the {n} mornings were [over in no time|the merriest of the
  year|soon gone]. {!theme:honest}On the last of them {ad} gave back the {c} ball. "The meadow," said {ad.he}, "is
  over there." <moral>

- Of all the cups in the cupboard, one was never used. It was thin and {c=colour}, and {his} {k} had [brought it
  from over the sea|got it from {k.his} own grandmother|been given it on {k.his} wedding day]. {hero} only wanted to
  hold it to the light.{!g=hero} Then it was in {n=number} pieces.

  Quick as a mouse, {he} wrapped the pieces in [a napkin|a sock|newspaper] and hid them {p=nook}. "The cat did it,"
  {he} said to the mirror, to see how it sounded. The cat [washed its ears|looked at {him}|walked out of the
  room].[ <hush>|2~]

  On {d=day} [a visitor came|the doctor came to tea|it was {k.his} birthday]. "Today we shall use the best cup,"
  {k.he} said, and opened the cupboard. {hero} felt hot all over. "It is not there," {he} said in a small voice. "It
  is {p}, and it is in {n} pieces, and it was not the cat." For a long moment nobody said a word.[ <beat>|3~]

  Then {his} {k} fetched the bundle and laid the pieces side by side [on the table|on a tray|on the blue cloth].
  {!theme:honest}"It was only a cup," {k.he} said at last, "but you are my {hero}." They glued it together, all {n}
  pieces of it. It never held tea again. It held {fl=flower}, and they looked very well in it. <moral>

- One sledge and two children: that was the trouble. The sledge had {n=number} brass nails, it was as fast as a
  hawk, and it belonged to {hero} and to {f=child}, half and half, because they had [found it together|paid for it
  together|built it together].{!g=hero+f}{!where:out}{!snow:yes} "I shall have the front half," <spoke>
  {hero}[ <how>|3~]. "Then I shall have the runners," <spoke> {f}[ <how>|3~], "and see how far you get."

  They pulled at it, one on each side. They [shouted|pushed|called each other names]. Meanwhile the sledge [got
  tired of it|slipped away|turned round] and went down the hill by itself, faster and faster, straight into the
  fence of {ad=adult}, the {ad.job}.[ <hush>|2~]

  There it lay with {hero}'s half on one side of the fence and {f}'s half on the other. {ad} came out in
  [slippers|an apron|{ad.his} nightcap]. "I count {n} brass nails," {ad.he} <spoke>, "and two sillies. Which half
  slides better?" They tried. The front half [fell on its nose|went round in a ring|ploughed into the snow], and the
  back half did not move at all.[ <beat>|3~]

  {!theme:share}So the {ad.job} lent them [a hammer|some glue and two clamps|wire and pliers], and they put the
  halves together with all {n} nails. After that {hero} steered on the way down while {f} held on behind, and [next
  time|on the next run] it was {f} who steered. It went faster with two. Anybody could have told them so.

  <close>

- A swap is a swap. {hero} gave {f=child} {his} old {t=toy}, and {f} gave {hero} a brand-new {s=toy} for it, and
  both spat on their hands and shook.{!g=hero} Nobody else was there but {b.a=beast}.

  The {s} was [bright|shiny|splendid] and smelled of varnish. But when {hero} lay in bed that night, something was
  missing. {He} knew every scratch on the {t}. {His} {k} had given it to {him} when {he} had [the measles|a broken
  arm|whooping cough], and had sat by {his} bed for {n=number} nights. {hero} <at_night> and did not
  sleep.[ <hush>|2~]

  In the morning {he} stood at {f}'s gate with the {s} under {his} arm. "I know that a swap is a swap," {he} began,
  <sad>. "But that one was with me for {n} nights when I was ill." {f} <f_squirms>. "I am so glad," {f.he} <said>.
  "My {sib=sibling} has been crying for the {s} since yesterday. It was not quite mine to swap."[ <beat>|3~]

  {!theme:friend}So {hero} got back the {t}, and {f}'s {sib} got back the {s}, and both spat on their hands again.
  "What shall we swap now?" {f} <asked>. "[Secrets|Jokes|Sandwiches]," <spoke> {hero}. <moral>

- [?own:dream In the window of the music shop was
  {dream.a}{!i=dream}{!own:done}|?own:pocket/friends/socks/picture/toy/- In the window of the music shop was
  {i.a=instrument}], and every day on the way from school {hero} stood before it until the glass was misty.{!g=hero}
  It cost {n=number} silver coins. {hero} had [one|none|a button and one coin].

  "You can earn it," <spoke> {his} {k}[ <how>|3~]. So {he} [carried coal|washed bottles|walked dogs] for {ad=adult},
  the {ad.job}, who paid one coin a week. Summer went by with [its cherries|its long evenings|swimming], and {hero}
  worked. One coin after another dropped into the {c=colour} jar on the shelf. {f=child} said, "Spend it! We could
  [go to the circus|eat ice for a week|buy rockets]." {hero} closed {his} ears and counted.[ <air>|2~]

  On the day when there were {n} coins in the {c} jar, {he} ran to the shop. The place in the window was empty. The
  {i} was [sold|gone]! {hero} walked home [slowly|along the wall, with {his} face turned away,|as if through deep
  water] and put the jar back on the shelf.[ <beat>|3~]

  There was a knock. Outside stood {ad}, with something long and lumpy in a sack. "I bought it this morning," said
  the {ad.job}, "so that nobody else should. You may have it for {n} coins." {!theme:patient}That evening the whole
  street heard the {i}. It was [horrible|more noise than music|only one note], and {hero} had never been so happy.
  <moral>

- When the pot of {ad=adult} was empty, {ad.he} put it out on the square, and beside it a board: Soup today, if you
  bring some. People [laughed|shrugged|walked past with their baskets closed].{!g=hero} It had been a bad year, and
  everybody was saving what was left.

  {hero} read the board twice. {He} had one {v=vegetable}, for {his} own supper. {He} turned it over and
  over. Then {he} dropped it into the pot. "That makes soup of {v}," <spoke> the {ad.job}[ <how>|3~], "which is
  thin, but warm."[ <air>|2~]

  {f=child} had seen it. {f.He} ran home and came back with <snack>, and after {f.him} came the {j=trade} with
  {n=number} potatoes. "I have too many," {j.he} <said>. Then they all came, with [beans|barley|leeks] and with
  bread, and somebody had a fiddle. The pot [bubbled|sang|steamed] until the windows round the square were
  misty.[ <beat>|3~]

  They ate until it was dark, and the pot was still not empty. "Who began it?" <asked> the {j}. "I brought only {n}
  potatoes." {ad} held up the ladle, and in it lay a piece of {v}. {!theme:share}{!food:yes}"It was {hero}," {ad.he}
  <said>, "who had only one." <moral>

- Two of them, and one slice of {tr=slice}. {hero} looked at {f=child}, and {f} looked at the plate.{!g=hero+f} "I
  carried the basket," <spoke> {f}[ <how>|3~]. "I found the [bench|shady place|way]," <spoke> {hero}[ <how>|3~]. It
  was the last slice, and they had walked {n=number} miles.

  "One of you cuts," <spoke> {his} {k}, who was lying in the grass with a hat over {k.his} face, "and the
  other one chooses." So {hero} took the knife. Never was anything cut so carefully. {He} measured with [a
  straw|{his} thumb|a blade of grass], and {he} held {his} breath. There lay two pieces, as like as two
  eyes.[ <air>|2~]

  Just then [a thin dog|a boy with bare feet|a tramp in a torn coat] came along the path and stopped. It was plain
  that there had been no breakfast. {hero} looked at {f}. {f} looked at {hero}. Then {f} took the knife and cut each
  piece once more. "Now there are four," <spoke> {f}[ <how>|3~]. "Two for us, and two for whoever is
  hungriest."[ <beat>|3~]

  {!theme:share}{!food:yes}The {tr} was gone in a moment, to the last crumb. It is odd, but after {n} miles, and a
  quarter of a slice each, {hero} and {f} were [full|quite full]. <moral>

- The tailor had made one coat, {c.a=colour} one with {n=number} horn buttons, and it was for {hero}, because winter
  was at the door.{!g=hero}{!snow:yes} In the pocket {he} kept {pk=keepsake}. {He} was so warm in it that {he}
  [sang|hummed|skipped] all the way to school.

  At school sat {f=child}, in a summer jacket, with blue lips. "Are you not cold?" <asked> {hero}. "I like it cold,"
  said {f}, and {f.his} teeth chattered. The day after, {f} [coughed|stayed away|sat close to the stove and
  shivered].[ <hush>|2~]

  {hero} thought about it for {w=number} days. Then {he} said to {his} {k}, "My old coat is still good, if I do not
  breathe in. May I give away the new one?" {His} {k} looked at {him} and was silent. "You may," {k.he} said at
  last. And next morning there was a parcel on {f}'s chair, [without a name|tied with string|wrapped in brown
  paper].[ <beat>|3~]

  All that winter {f} wore the {c} coat, and never knew from whom it came. But in spring {f.he} sat down beside
  {hero}. "There were {n} buttons on it," {f.he} <said>, "and {pk} in the pocket, and who but you carries {pk.the}
  about [everywhere|all year long]?" {!theme:kind}{hero} went as red as a poppy. <moral>
"""

"""Plots about promises, secrets, waiting and looking after somebody."""

PROMISED = """
== plot
- "Promise me one thing," <spoke> {his} {k} with one foot on the cart. "While I am away, you must {p=promise}, every
  evening, until {d=day}." "I promise," <spoke> {hero}[ <how>|3~], and waved until the dust had settled.{!g=hero}

  On the first evening {he} did it at once, and on the second [a little later|with a yawn|in the dusk]. On the third
  {f=child} came and called, "There is a <sight> on the square!" They ran all the way. There was {c.a=colour} tent,
  and a [bear that danced|clown with a goose|man on stilts], and {hero} laughed until {his} sides hurt.[ <air>|2~]

  {He} was already in bed when it came back to {him}, like a cold hand in the dark. There was something that {he}
  had forgotten. What was it? {He} heard {his} own voice say, I promise. And it had been, to {p}! It was
  [pitch-dark|raining|almost midnight] now. {hero} put on {his} boots over {his} bare feet and went out, with {his}
  heart [thumping|in {his} mouth], and so, by the light of [a candle end|the moon|a stable lamp], {he}
  {p.did}.[ <beat>|3~]

  {!theme:promise}When {d} came, the cart rolled into the yard. "Well?" <asked> {his} {k}, and got down stiffly.
  "Every evening," <spoke> {hero}[ <how>|3~]. "But once it was very late. There was {c.a} tent." {His} {k}
  [laughed|kissed {him}|held {him} close] and asked for no more. <moral>

- It had to stay a secret. On {d=day} there would be a feast for {ad=adult}, the {ad.job}, with {n=number} candles
  and a cake, and the whole street had sworn to be silent. "Especially you," <spoke> {his} {k} to {hero}.
  "Especially me," <said> {hero}.{!g=hero}

  It is hard to have a secret. It [tickles|jumps about|pushes from inside like yeast]. On the way to school {hero}
  met {ad}. "You look as if you had swallowed a frog," <spoke> the {ad.job}[ <how>|3~]. "What is it?" {hero} pressed
  {his} lips together and shook {his} head. "Then at least tell me what you are carrying." It was {c=colour} paper
  for the lanterns. "It is for [school|a kite|wrapping fish]," {he} might have said, but {he} did not like to lie.
  "It is a secret," {he} <spoke>, "and it is a good one. May I keep it until {d}?"[ <air>|2~]

  "A good secret should be kept," <spoke> {ad}[ <how>|3~], and went [on|off], and looked a little lonely, for nobody
  had visited all week. {hero} nearly ran after {ad.him}. {He} <hero_squirms>.[ <beat>|3~]

  And then it was {d}. The {ad.job} opened {ad.his} door, and the street was full of {c} lanterns, and there stood
  {n} candles on a cake. "So that was your frog!" <cried> {ad} to {hero}, with wet eyes. {!theme:promise}"You may
  spit it out now." <moral>

- They had agreed on it: {f=child} would come with the [rope|tent|telescope|apples], and {hero} would wait {p=spot},
  whatever happened.{!g=hero}{!where:out} "Whatever happens," <spoke> {f}[ <how>|3~]. "Whatever happens," <spoke>
  {hero}[ <how>|3~].[ <thread>|]

  {He} was there first. {He} walked up and down, and {he} sat, and {he} stood. {ad=adult} came by and said, "[It
  will rain|There is free lemonade at the school|The fair is opening]. Are you not coming?" "I am waiting for {f},"
  said {hero}. "{f.He} has forgotten it," <spoke> the {ad.job}[ <how>|3~]. {hero} shook {his} head.[~~<rest>|2~]

  The {ad.job} was right about one thing: [it grew cold|the light went|the wind got up]. It would have been so easy
  to go home. But what if {f} came, and nobody was there? {hero} pulled {his} {c=colour} cap over {his} ears and
  stayed.[ <beat>|3~]

  Meanwhile, [on the other side of the hill|in the next valley|beyond the wood], {f} had [twisted a foot|lost the
  way|met a bull] and was limping along in the dusk, and had only one thought: {hero} is waiting {p}. So {f.he} did
  not sit down, and {f.he} did not cry. And when {f.he} saw {c.a} cap, very small and far away, {f.he}
  began to run on one leg. "You are late," <spoke> {hero}[ <how>|3~]. "You are here," <spoke> {f}.
  {!theme:friend}

  <close>

- {His} {sib=sibling} had to stay in bed, [with a cough|with spots|with a broken leg], while {hero} was to travel to
  the sea. "Bring me something," begged the {sib}. "Bring me {x=seathing}." And {hero} promised it on the doorstep,
  with {his} hat already on.{!g=hero}

  There was so much at the sea! There were [ships|crabs|donkeys], and wind, and [an old man who sold|a lady who
  fried] fish. {hero} dug a harbour with {n=number} piers. {He} found [a bottle|a cork|half an oar], and {he} found
  {c.a=colour} stone with a white ring, so smooth that {he} could not stop stroking it. But of what {he} had
  promised {he} saw nothing, though {he} looked [at high tide|between the rocks|along the whole beach].[ <air>|2~]

  On the last day {f=child}, whose father was a fisherman, sat on the wall. "I have what you want," {f} <said>. "But
  I do not give it for nothing. What have you got?" {hero} felt the stone in {his} pocket. It was warm. {He} thought
  of the bed, and of who lay in it. Then {he} put the {c} stone into {f}'s hand, rather quickly.[ <beat>|3~]

  "Did you bring it?" called the {sib} before {he} was through the door. "What did I promise?" said {hero}. "You
  said, {x}!" And out of the hat {he} took {x}, with the sand still on it. {!theme:promise}"And what is left for
  you?" <asked> {his} {k}. {hero} thought of the {c} stone with the white ring. "I built a harbour," {he} <spoke>,
  "with {n} piers." <moral>

- Under the {tr=tree}, after the storm, lay a young {b=bird} with its beak wide open. It weighed no more than a
  [letter|walnut|slice of bread].{!g=hero} "It will not live," <spoke> {f=child}. "It will if I look after it,"
  <spoke> {hero}[ <how>|3~], and carried it home in {his} {c=colour} cap.

  A young {b} must be fed every half hour. {hero} [dug for worms|caught flies|mashed an egg] and fed it, and off
  {he} went for more. {He} named it {nm=petname}. {He} had no time for [football|the river|the swing], and {f}
  [grumbled|played alone|sulked]. At night it slept in the {c} cap next to {his} pillow. After {n=number} days it
  [hopped onto {his} finger|ate by itself|sat on the clock and scolded].[ <hush>|2~]

  "One day it must fly," <spoke> {his} {k}[ <how>|3~], "and then it will go." {hero} did not want to hear that. All
  the same {he} stood on a chair every evening and let it flutter down [to the carpet|into the washing|onto the
  cushions], a little further each time. And on {d=day} {he} opened the window. {nm} sat on the sill, looked left,
  looked right, and was gone.

  The {c} cap lay by the pillow, and {hero} could not look at it. But in spring there was a
  [tapping|fluttering|whistling] at the glass. On the sill of the same window sat a {b}, and it was not shy at all.
  {!theme:patient}{!living:yes}"{nm}!" whispered {hero}. "For {n} days I fed you, and you still know me." <moral>

- From one day to the next {f=child} was ill and had to lie in the dark [with bandaged eyes|with a fever|and keep
  still] for {n=number} weeks.{!g=hero} "I shall be your eyes," <spoke> {hero}[ <how>|3~]. "Every day I shall come
  and tell you what I have seen. I promise."

  And {he} came. {He} told {f} of the [snow|blossom|flood], and of the goat that [ate the minister's hat|got into
  church|fell asleep on the tram tracks]. On {d=day} {he} told {f.him} about a ship with {c=colour} sails. "Say that
  again," <spoke> {f}[ <how>|3~], who had never been to the harbour. "What colour?" "{C}, all of them," {hero}
  <said>, "and a [mermaid|lion|star] on the bow."[ <hush>|2~]

  To have something to tell, {he} began to look. {He} [walked home by a new street every day|got up to see the sun
  rise|climbed on walls]. {He} saw that the {j=trade} [talked to pigeons|had odd socks|wore a wig], and that the
  moon was there in the daytime. "I never knew how much goes on here," {he} said to {his} {k}.[ <beat>|3~]

  After {n} weeks {f} was allowed to get up. The two of them went down to the harbour very slowly. There lay a ship,
  and its sails were {c}. {f} [stood still|held on to the rail|laughed]. "It is just as I saw it," {f.he} <spoke>.
  {!theme:friend}"I saw it lying in bed, through you." <moral>

- Three nights in a row something had come to the hens of {ad=adult}, and now there were only {n=number}. "I need
  somebody with young ears," <spoke> the {ad.job}[ <how>|3~], "to sleep in the straw and wake me." Nobody [spoke
  up|was in a hurry]. "I will," <spoke> {hero}[ <how>|3~], before {he} had thought about it.{!g=hero}{!where:out}
  {His} {k} gave {him} {lk=hard} to hold on to.

  The night was [black as a boot|full of small noises|without a moon]. The straw pricked. Something <noise>. {hero}
  counted the hens in the dark, by their breathing. {He} squeezed {lk.the} until it was [warm|wet|hot] in {his}
  hand. An owl called from the [barn|chestnut|chimney].[ <hush>|2~]

  Then the boards scraped. Two eyes came in under the door, [green|yellow] and quite calm. {hero} wanted to pull the
  sack over {his} head. Instead {he} stood up, as tall as {he} could, and shouted every word {he} knew: "[Thunder
  and soup|Saucepans|Out, you stocking thief]!" The eyes [went out like lamps|jumped|vanished], the hens screamed,
  and {ad} came running with a [rake|ladle|lantern] and one sock on.

  They found a hole under the door, and a tuft of red hair. They stopped it up with {c=colour} bricks. In the
  morning {hero} counted. All {n} were there. "Were you not afraid?" <asked> {ad}. {!theme:brave}{!dark:yes}{hero}
  opened {his} hand, and there was still the mark of {lk.the} in it. <moral>

- The town clock had stopped, and {ad=adult}, the {ad.job}, who looked after it, shook {ad.his} head. "Someone must
  sit up there and strike the bell by hand," {ad.he} <said>, "until the new wheel comes on
  {d=day}."{!g=hero}{!where:out} {hero} put up {his} hand. "I can count," {he} <spoke>.

  So {he} climbed the {n=many} steps of the tower with [a blanket|a bag of apples|two books] and {his} {k}'s pocket
  watch, and struck the hours. Below, people [set their clocks|boiled their eggs|went to work] by {him}. It was
  [lonely|draughty|splendid], with only the pigeons for company.[~~<rest>|2~]

  On the second day {f=child} called up from the square, "Come down! [The river is frozen|We are one short for the
  match|There are free waffles]! Who cares about one hour?" {hero} looked at the watch. It was two minutes to four.
  {He} could be back by [five|half past four]. But the train driver looked up at the tower at four, and the
  [nurse|teacher|milkman], and the old lady who took her medicine by it. "I care," {he} called back.[ <beat>|3~]

  On {d} the new wheel came. The {ad.job} put it in and said, "Not one hour was missing." Then {ad.he} let {hero}
  carve {his} name into the beam, beside the others who had once sat there. {!theme:promise}And every time {he}
  passed by after that, {he} looked up, and in {his} legs {he} felt all {n} steps. <moral>
"""

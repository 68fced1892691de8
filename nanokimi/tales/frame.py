"""How stories begin and end: first paragraphs, a second thread to pick up again, ways home, morals."""

FRAME = """
== story
- 5~<intro>~~<plot>
- 2~<fable>

== intro
- {hero=child} [was {age=age} years old and lived {home=home} with {his} {k=kin}|lived {home=home} in {town=town},
  where {his} {k=kin} had lived before {him}, and in spring {he} had turned {age=age}|had just turned {age=age}, and
  lived with {his} {k=kin} {home=home}|came from {town=town}, where {he} lived {home=home} with {his} {k=kin}; {he}
  was {age=age}]. <trait>
- In those days a <child_kind> girl named {hero=girl} lived {home=home}. {He} was {age=age}, and {his} {k=kin}
  <looked_after> {him}. <trait>
- There was a boy called {hero=boy}, {age=age} years old, <child_kind> and [never still|always curious|full of
  plans|often late|good at sums|fond of singing]. {He} lived {home=home} with {his} {k=kin}. <trait>
- If you had walked past {home.short=home} in {town=town} that year, you would have met {hero=child}, who was
  {age=age}, and {his} {k=kin}, who <kin_habit>. <trait>
- "{Age=age} years old and still growing," said the {k=kin} of {hero=child}, and made a new pencil mark on the door
  frame. They lived {home=home}, [and had done so for years|and were happy there]. <trait>
- On the morning of this story the {k=kin} of {hero=child} <kin_doing>. {hero}, who was {age=age}, <hero_doing>.
  Their home was {home.short=home}[ in {town=town}|, and they liked it there]. <trait>
- The people of {town=town} knew two things about {hero=child}: {he} was {age=age}, and {he} <habit>.{!habit:told}
  {He} lived {home=home} with {his} {k=kin}, who <kin_habit>. <trait>
- Far from here, in {town=town}, somebody called {hero=child} lived {home=home}. "Only {age=age}," sighed {his}
  {k=kin} now and then, for {he} <habit>.{!habit:told} <trait>

== trait
- {hero} [loved|liked] {fa=food} and {fb=food}, but [would not touch|could not bear|hid from]
  {fc=food}.{!trait:food}[ <belongings>|] <first_mood>
- They had a [fat|thin|striped|one-eyed|spotted|grey|sleepy] cat, {cat=cat}, who slept [in the sink|on the piano|in
  the bread bin|on top of the stove|in the coal box|on the ironing|among the flowerpots|on the
  radio].{!trait:cat}[ <belongings>|] <first_mood>
- Every morning {his} {k} asked {him} a riddle. That day it was this: "{q=riddle}" {hero} could not [guess|say]
  it.{!trait:riddle}[ <belongings>|] <first_mood>
- At breakfast {hero} had made a wish: {wish=wish}. {He} told [nobody|only the cat|only {his}
  porridge].{!trait:wish}[ <belongings>|] <first_mood>
- <belongings> <first_mood>
- ?habit:- {He} <habit>.[ <belongings>|] <first_mood>

== habit
- asked questions from morning to night
- lost {his} cap every week
- drew boats on everything
- hummed when {he} was thinking
- counted whatever could be counted
- collected [stamps|buttons|feathers|bottle tops|long words|maps]
- could walk on {his} hands
- walked on walls
- talked to [birds|trees|horses|the moon|{his} shoes]
- read under the blanket
- wanted to be a [sailor|baker|clown|doctor|train driver|painter]
- never closed a door
- ate {his} apples with the core
- ran wherever others walked
- always put {his} left shoe on first
- knew the names of all the dogs

== kin_habit
- sang all day
- grew roses
- mended clocks
- told stories
- laughed easily
- kept bees
- painted plates
- baked on Fridays
- wrote long letters
- played cards
- knitted socks
- read the stars
- repaired bicycles
- forgot everything but birthdays

== kin_doing
- was baking
- was out in the garden
- sat at the sewing machine
- had a cold
- was in a hurry
- was whitewashing the fence
- was looking for a pair of spectacles
- had burned the porridge
- was counting the spoons
- was singing in the bath
- was up a ladder
- had slept badly

== hero_doing
- had nothing to do
- was up early
- sat on the doorstep
- ate {his} porridge
- was looking for a sock
- cut {his} own hair
- was feeding the goldfish
- built a tower of plates
- was lying under the table
- practised handstands
- stirred {his} cocoa
- breathed on the window and drew a face

== looked_after
- looked after
- cooked for
- sang to
- told stories to
- played chess with
- tried to keep up with

== child_kind
- small
- freckled
- cheerful
- thoughtful
- brave
- quiet
- stubborn
- sharp-eyed
- curly-haired
- long-legged
- dreamy
- lively

== first_mood
- It had been a [good|strange|windy|long|hungry|happy|quiet|wild] year so far.
- On {day=day} {he} woke [early|late|with a start|before the cock|with a cold nose|in the middle of a dream] and
  felt <mood>.
- Nothing much happened there, until [one day|one week|all of a sudden|quite unexpectedly] something did.
- {He} was <mood> that [day|week|morning], and {he} did not [yet |]know why.
- It was a [good|noisy|busy|happy|small|warm|crooked|friendly] life.
- You could not say that {he} was looking for [adventure|trouble|work].
- This is what happened to {him} [once|that year|before {he} was much older].
- The neighbours still tell the story, and each of them tells it differently.
- What came next {he} had not [planned|expected|dreamed of].
- {He} was [one inch|two inches|half a head] taller than the year before, and it [made {him} bold|pleased {him}].
- Until then {he} had never [done anything brave|told a lie|made a promise|travelled far|owned a secret], or hardly
  ever.
- The wind [had turned|had dropped|came from the sea], and something was in the air.

== mood
- cheerful
- restless
- a little lonely
- full of hope
- cross with everybody
- brave
- rather bored
- curious
- wide awake
- proud of nothing in particular
- hungry for adventure
- sleepy
- silly
- very grown-up
- rather important
- as merry as a cricket
- as brave as a bear
- as cross as two sticks
- itchy all over with ideas
- quite unlike {himself}
- as light as a feather
- shy
- ready for anything

== thread
- Before {he} left, {his} {k} <said>, "Please bring me {item=errand}." {hero} [nodded|promised|said {he} would].
  {!thread:errand}
- {His} {k} put {keep=keepsake} into {his} pocket. "For luck," {k.he} <said>.{!thread:keepsake}
- "Be home before {when=hour}," <said> {his} {k}. "Cross my heart," <said> {hero}.{!thread:hour}
- Because it was [windy|chilly|a raw day], {his} {k} tied {scarf.a=colour} scarf round {his} neck.{!thread:scarf}

== close
- [{hero} walked back to {home.short}|When {he} came in at the door of {home.short}, {he} [was hungry|was out of
  breath|was humming|smelled soup]|The lamp was lit in {home.short} when {he} got back|At {home.short} {his} {k} was
  [peeling apples|reading the paper|watering the roses|stirring a pot]|It was [late|nearly dark|long past tea]
  before {he} saw the chimney of {home.short}]. <thread_end> <moral>
- That [evening|night] {he} told {his} {k} [all of it|the whole story|everything, from beginning to end].
  <thread_end> <moral>
- "[Where have you been|What took you so long|Well, and how was it]?" <asked> {his} {k}. {hero} [told {k.him}
  all about it|began at the beginning and left nothing out]. <thread_end> <moral>

== thread_end
- ?thread:errand [On the table {he} put {item}, for {he} had not forgotten.|And yes, {he} had brought {item}.|"Did
  you think of {item}?" {k.he} asked. Of course {he} had.]
- ?thread:keepsake [{He} gave back {keep.the}. "It helped," {he} <said>.|{He} still had {keep.the} in {his} pocket,
  and it was quite warm.|"May I keep {keep.the}?" {he} asked, and {he} was allowed to.]
- ?thread:hour [{He} was just in time, for a minute later {when.past}.|Hardly was {he} inside when {when.past}.|And
  {he} had kept {his} word: only now {when.past}.]
- ?thread:scarf [The {scarf} scarf had a hole in it now, but nobody minded.|{He} hung the {scarf} scarf over the
  stove to dry.|{His} {k} unwound the {scarf} scarf and laughed.]
- 2~?thread:-&trait:cat/riddle/wish/done/- They had <treat_now> for supper.
- 2~?thread:-&trait:food/riddle/wish/done/- The cat [yawned|purred|listened with one ear].
- 4~?thread:- [?snow:- Outside it began to
  rain, but the kitchen was warm.|The stars came out one by one.|"Well, well," <said> {his} {k}, and poured the
  tea.|They laughed about it until their tea was cold.]

== treat_now
- soup
- pancakes
- fish
- potatoes and butter
- apple pie
- warm bread
- cheese on toast
- dumplings

== moral
- 2~?own:pocket/friends/socks/dream/picture/toy <memory> <lesson>
- ?trait:food/cat/riddle/wish <recall> <lesson>
- <lesson>

== recall
- ?trait:food [They had {fa} for supper, and no {fc}|For supper they had {fa} and {fb}|That evening {he} even ate
  {fc}|And because {he} had earned it, they had {fb} that night].
- ?trait:cat [{cat} was told about it, too|That night {cat} slept on {his} feet|Even {cat} came to be stroked|Only
  {cat} slept through it all|At home {cat} [yawned|purred|looked the other way]].
- ?trait:riddle [Only then did {he} think of the riddle. "It is {q.answer}!" {he} <cried>.|"And I know your riddle,"
  {he} told {his} {k} that night. "It is {q.answer}."|At supper {he} put down {his} spoon. "The answer is
  {q.answer}," {he} <said>.]
- ?trait:wish [{He} had wished for something else that morning: {wish}. It could wait.|That night {he} dreamed of
  {wish.ing}.|"I used to wish for one thing," {he} <said>, "and it was {wish}. But today was better."]

== memory
- ?own:pocket [When {he} emptied {his} pockets, there lay {pa.the}, {pb.the} and {pc.the}|{He} gave away {pa.the},
  and kept {pb.the} and {pc.the}|At bedtime {he} put {pc.the} under {his} pillow, for luck|Somewhere {he} had lost
  {pb.the}, and did not mind].
- ?own:friends [Next day {fx}, {fy} and {fz} wanted to hear it, too|{fx} said it was made up, {fy} laughed, and {fz}
  asked for more|{fz} told {fy}, {fy} told {fx}, and so everybody knew it by noon].
- ?own:socks [By now the {ca} sock was as dirty as the {cb} one|{He} pulled off the {ca} sock, and then the {cb}
  one, and wriggled {his} toes|One sock was still {ca}, but the {cb} one had a hole].
- ?own:dream [{He} put one more coin aside for the {dream}|For a while {he} forgot all about the {dream}|In {his}
  head {he} could hear the {dream}, quite clearly].
- ?own:picture [The last thing {he} saw before {he} slept was {pic.the}|Over the bed, {pic.the} looked [almost
  alive|a little different]|{He} told it all to {pic.the}].
- ?own:toy [The {cc} {tt} was waiting where it always waited|At bedtime {he} set the {cc} {tt} on the sill to keep
  watch|And the {cc} {tt} was allowed into {his} bed].

== lesson
- ?theme:promise [A promise, {hero} had learned, is [like a pot on the stove: somebody must watch it|a thing you
  carry until you set it down in the right place].|"A promise is a promise," {hero} <said> to the [moon|evening
  star|sky], and meant it.|From then on people said that the word of {hero} was as good as [bread|gold|a signed
  letter].|A promise is easy to give and hard to keep, but {hero} had done both.]
- ?theme:honest [The truth had been [short|hard|cold], but {he} slept well on it.|{hero} knew now that a lie [grows
  legs|needs feeding every day|is heavier than a sack of stones], and the truth is light.|It had taken courage to
  say it, and only a minute.|Nobody was angry for long, because {hero} had told the truth.]
- ?theme:fair [What is not yours, {hero} thought, is [heavier than iron|a poor thing to carry].|Clean hands, people
  say there, are never empty.|{He} slept well that night, as people do who owe nobody anything.|It had been the
  right thing to do, and {hero} had known it all along.]
- ?theme:share [Half of a good thing, {he} thought, is sometimes more than the whole.|?food:yes {hero} never forgot
  how good it tastes when two are eating.|What you share, people say there, comes back with butter on it.|After that
  {he} always [?food:yes cut things in two|asked first who else wanted some|took turns without being told].]
- ?theme:brave [{He} had been afraid, and {he} had done it all the same, and that is what brave means.|Being brave,
  {hero} found, [feels exactly like being afraid, only you keep walking|begins with one small step].|?dark:yes The
  dark was still dark, but {hero} was [bigger|taller on the inside].|"I was frightened the whole time," {he} <said>,
  quite [proudly|happily].]
- ?theme:patient [Good things take their time, and {hero} [had time|had learned to wait].|It had taken long, and it
  was worth every hour.|"Slowly, slowly," {hero} liked to say after that.|?living:yes {hero} was never again in a
  hurry with living things.]
- ?theme:kind [It had cost {him} something to be kind, and {he} felt [all the richer for it|rich].|{hero} thought
  that kindness is a sort of [lamp|bridge|bread]: it is there for everybody.|One kind deed had [called
  another|rolled on like a wheel].|Nobody had asked {hero} to help, and that was the best of it.]
- ?theme:friend [A friend, {hero} decided, is somebody [who stays when it rains|who comes back].|From that day on,
  {hero} and {f} were [the best of friends|hardly ever seen apart].|?quarrel:yes Quarrels pass, and friends stay.|It
  was not [the biggest|the grandest] day of the year, but {hero} had a friend.]
- ?theme:careful [After that {hero} always looked twice.|?hidden:yes {hero} never again put a thing away without
  thinking where.|A careful eye, {hero} thought, saves two busy hands.|"Next time," {he} <said>, "I shall keep my
  eyes open."]
- ?theme:try [{He} had failed [more than once|again and again], and it had only made {him} better.|Whoever falls
  [seven|nine] times, they say there, must get up once more than that.|{hero} was proud of every one of {his}
  mistakes.|It had not been luck, and {hero} knew it.]
- ?theme:together [Alone {he} could never have done it, and {he} knew it.|Many hands, {hero} thought, [can move a
  house|make one big hand].|It is good to be strong, and better to be two.|Everything weighs half, {hero} found,
  when two are lifting.]

== said
- 8~said
- 2~murmured
- declared
- whispered
- announced
- remarked
- observed

== spoke
- 8~said
- 2~remarked
- declared
- announced
- observed

== asked
- 4~asked
- inquired

== cried
- 2~cried
- 2~shouted
- called
- exclaimed
- yelled

== went
- walked
- hurried
- trotted
- marched
- skipped
- strolled
- wandered
- set off
- went
- tramped
- scampered
- dashed
- strode
- hopped
- trudged
- sauntered

== hastened
- ran
- hurried
- dashed
- rushed
- raced
- trotted

== later
- After a while
- Before long
- A little later
- By and by
- Soon
- Presently
- A few minutes later
- Some time afterwards

== sad
- sad
- gloomy
- miserable
- unhappy
- downcast
- close to tears
- wretched
- crestfallen
- heavy at heart
- as small as a pea
- glum
- at a loss
- tired to the bone
"""

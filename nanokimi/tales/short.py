"""A second, smaller world: stories of about 70 words, each of which fits into a short context (see notation.py).

It has fewer words and wordings than the tales, so a small model learns its sentences in minutes. What remains is to
remember who, what, which colour and where. It has words of its own and no thesaurus.
"""

SHORT_LEXICONS = """
= girl : name; sex=f
Ada | Bea | Cleo | Dora | Elsa | Fay | Greta | Hana | Ines | Josie | Kaya | Lotte | Mira | Nora | Olive | Petra
Rosa | Sana | Thea | Una | Vera | Wanda | Yuki | Zoe

= boy : name; sex=m
Abel | Ben | Caleb | Dario | Emil | Finn | Gus | Hugo | Ivan | Jonas | Kofi | Leo | Milo | Ned | Otto | Paul
Quinn | Ravi | Silas | Tom | Ulf | Victor | Walter | Yusuf

= child : name + girl + boy

= pet : pet
Biscuit; sex=m | Clover; sex=f | Domino; sex=m | Ginger; sex=f | Inkpot; sex=m | Misty; sex=f | Nettle; sex=f
Pepper; sex=f | Rusty; sex=m | Scamp; sex=m | Toffee; sex=f | Waffle; sex=m

= kin : kin
mother; sex=f | father; sex=m | grandmother; sex=f | grandfather; sex=m | aunt; sex=f | uncle; sex=m
big sister; sex=f | big brother; sex=m

= colour : colour
red | blue | green | yellow | orange | purple | white | brown | grey | pink | silver | black | golden | violet
cream | lilac

= thing : object
kite | drum | lamp | key | whistle | ball | book | basket | mirror | mask | flute | clock | cup | cap | spoon | bell

= spot : place
under the bridge | behind the barn | by the pond | in the hollow oak | near the mill | under the stairs
behind the bakery | beside the well | in the boat shed | at the station | below the tower | among the nettles
in the attic | by the gate | in the old cart | near the harbour

= number : number
three | four | five | six | seven | eight | nine | ten | eleven | twelve | thirteen

= day : time
Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday

= food : food
pancakes | plums | soup | cheese | honey | cherries | noodles | gingerbread | radishes | toast | pears | porridge

= beast : animal
hedgehog | squirrel | toad | mouse | owl | hare | otter | magpie | badger | robin | snail | fox

= town : place
Applecross | Birchley | Coldbrook | Duckington | Elderby | Foxcote | Goosegate | Honeyford | Kettleby | Larkfield
Mossley | Oatley | Ravenside | Saltby | Turnip End | Windle

= trade : trade
baker; sex=f | cobbler; sex=m | doctor; sex=f | ferryman; sex=m | gardener; sex=m | milkwoman; sex=f
postman; sex=m | potter; sex=f | tailor; sex=m | shepherd; sex=f
"""

SHORT = """
== story
- Early on {d=day}, {hero=child} lost {c.a=colour} {t=thing}. {He} looked {p=spot}, and {he} looked {q=spot}, but it
  was [not there|gone|nowhere]. {He} [sat down|went home|felt like crying].

  Then {f=child} came by with something {c}. "I found this {t} {r=spot}," {f.he} said. "Is it [yours|the one]?" "I
  lost it on {d}," said {hero}. So {f} gave {him} the {t}, and {hero} [thanked|hugged|danced with] {f.him}.

- Nobody had a better {t=thing} than {hero=child}. It was {c=colour}, and it came from {w=town}. "Lend it to me until
  {d=day}," begged {f=child}, and {hero} [did|agreed|said yes].

  {d} came, and {hero} had no {t}. {He} went to look, and there sat {f} {p=spot}. "The {c} paint came off," {f.he}
  [whispered|sobbed|said], "and I did not dare to tell you." {hero} [laughed|smiled|thought]. "Then we shall paint
  it together," {he} said, "and {w} will never know."

- A present must be hidden well, thought {hero=child}, and put the {c=colour} {t=thing} {p=spot}. It was for {his}
  {k=kin}. [A week|A month|A year] went by, and {hero} forgot the place. {He} looked {q=spot}. {He} looked {r=spot}.

  "Go back in your head," said {his} {k}. "What did you hear that day?" {hero} shut {his} eyes. {He} had heard
  {b.a=beast}[ far off| sneeze|]. And then {he} knew. It was {p}, and the {b} was sitting on the {c} {t}.

- "I shall come back on {d=day}," said {hero=child} to the {b=beast} {p=spot}, "and I shall bring you {fd=food}." The
  {b} [nodded|blinked|said nothing].

  Then it rained for {n=number} days. "It is only {b.a}," said the {k=kin} of {hero}. "It is a promise," said {hero}.
  On {d} {he} put on {c=colour} boots and [waded|walked|ran] all the way. {P} sat the {b}, and when it saw the
  {c} boots, it [hopped|sang|wept] for joy. It ate all the {fd}.

- The dog of {hero=child} was called {pet=pet}, and {pet.he} had one {c=colour} ear. On {d=day} {pet.he} ran away.
  {hero} [cried|shouted|whistled] for {n=number} hours. Then {he} asked the {j=trade}. "A dog with {c.a} ear?" said
  the {j}. "Go and look {p=spot}."

  {hero} went, and saw [only|nothing but] {b.a=beast}. But behind the {b} lay {pet}, and only the {c} ear was awake.
  "{N} hours!" said {hero} to {pet.him}, and carried {pet} home.

- There lay a purse {p=spot}, and in it were {n=number} coins. {hero=child} [counted them twice|picked it up].
  "[Keep|Hide] it," said {f=child}. "I shall not," said {hero}.

  They met the {j=trade}, who was [turning out {j.his} pockets|close to tears]. "What colour is it?" asked {hero}.
  "It is {c=colour}, with {n} coins," said the {j}. So the {c} purse went back, and {hero} and {f} got {fd=food}
  from the {j}. "You were right," said {f}, with {f.his} mouth full of {fd}.

- High up in a tree hung {c.a=colour} {t=thing}, and {f=child} said that [nobody|no child] could fetch it. "I can,"
  said {hero=child}.

  {He} climbed past {n=number} branches and past {b.a=beast}. {His} knees [shook|hurt]. "Come down!" cried {f}. But
  {hero} reached out, and {he} had the {t}. "What did you see?" asked {f}. "All of {w=town}," said {hero}, "and {b.a},
  and {n} branches. The {c} {t} is for you."

- In {w=town} there was a prize for the best {fd=food}. {hero=child} [cooked|worked|stirred] for {n=number} hours, and
  {his} {k=kin} helped. But on {d=day} {pet=pet}, the cat, [ate it all|knocked it over|sat down in it].

  {hero} [wanted to cry|hid under the table]. "Tell them what happened," said {his} {k}. So {he} stood up before all
  of {w}, and told about the {n} hours, and the {fd}, and {pet}. They [laughed|clapped|cheered], and on that {d}
  {pet} got the prize.

- A letter came to the wrong house. It was in {c.a=colour} envelope, and it was for the {j=trade} of {w=town}. "Leave
  it," said the {k=kin} of {hero=child}. "Somebody is waiting for it," said {hero}.

  It took {him} {n=number} hours to walk to {w}. The {j} opened the {c} envelope with [shaking|floury|careful] hands.
  "My sister comes on {d=day}!" {j.he} said. "How far have you walked?" "{N} hours," said {hero}. The {j} gave
  {him} {fd=food} [for the way|and a hug].

- Once {b.a=beast} and {e.a=beast} shared a house {p=spot}. The {b} was called {hero=pet}, and the {e} was called
  {f=pet}. [In winter|In March] there was only one bite of {fd=food} left. "You eat it," said {f}. "No, you," said
  {hero}. [They argued|So it went on] for {n=number} days.

  Then {g.a=beast} came in from the snow. {hero} looked at {f}, and {f} looked at {hero}. And the {b} and the {e}
  gave the {fd} to the {g}.

- Every night {hero=child} heard a noise {p=spot}. "It is only {b.a=beast}," said {his} {k=kin}. But it
  [knocked|creaked] {n=number} times, and {hero} pulled the {c=colour} blanket over {his} head.

  On {d=day} {he} took a candle and went to look. There was no {b} {p}. There was {t.a=thing}, and it swung in the
  wind. [{N} times it hit the wall.|It was the {t} that made the noise.] {hero} took the {t} to bed with {him}, under
  the {c} blanket.

- At the market {hero=child} swapped {c.a=colour} {t=thing} for {u.a=thing}. Then {he} swapped the {u} for {fd=food},
  and {he} gave the {fd} to a hungry {b=beast}.

  "Where is the {c} {t}?" asked {his} {k=kin}. {hero} told {k.him} about the {u}, and the {fd}, and the {b}. {His}
  {k} [sighed|laughed|was silent]. But next morning the {t} lay on the step, and the {b} had put {n=number}
  [feathers|shells|berries] beside it.

- There was a race from {w=town} to {x=town} on {d=day}. {hero=child} was [small|slow|young], and {f=child} was the
  fastest of all. After {n=number} miles {f} fell and hurt {f.his} knee.

  {hero} could see {x} already. But {he} turned back, and tied {c.a=colour} scarf round the knee of {f}. They walked
  on together, and in {x} nobody [waited|cheered]. "I have lost," said {f}. "You have {c.a} scarf," said {hero}.

- "When I am big, I shall be {j.a=trade}," said {hero=child} to {his} {k=kin} on {d=day}. "Then [go|walk] to {w=town}
  and learn," said the {k}.

  The {j} of {w} gave {him} {c.a=colour} apron and {n=number} [pots|buckets|boxes] to carry. By evening {hero} was
  [tired|hungry|dirty]. "Do you still want to be {j.a}?" asked {his} {k}. {hero} looked at the {c} apron. "Yes,"
  {he} said, "but with fewer than {n}."
"""

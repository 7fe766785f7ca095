"""A few hundred plain facts, written down by hand: what is known, by topic."""

from scripts.tiny.lessons.words import split


def pairs(text):
    """Read `one: other` from a table as `split` does."""
    return [tuple(part.split(": ")) for part in split(text)]


COUNTRIES = [tuple(part.split(", ")) for part in split("""
France, Paris, Europe | Germany, Berlin, Europe | Spain, Madrid, Europe | Italy, Rome, Europe
Portugal, Lisbon, Europe | Poland, Warsaw, Europe | Austria, Vienna, Europe | Greece, Athens, Europe
Sweden, Stockholm, Europe | Norway, Oslo, Europe | Denmark, Copenhagen, Europe
Ireland, Dublin, Europe
Finland, Helsinki, Europe | Iceland, Reykjavik, Europe | Belgium, Brussels, Europe
Serbia, Belgrade, Europe
Hungary, Budapest, Europe | Romania, Bucharest, Europe | Bulgaria, Sofia, Europe
Croatia, Zagreb, Europe
Ukraine, Kyiv, Europe | Russia, Moscow, Europe | Switzerland, Bern, Europe | Albania, Tirana, Europe
Latvia, Riga, Europe | Lithuania, Vilnius, Europe | Estonia, Tallinn, Europe
Malta, Valletta, Europe
Slovenia, Ljubljana, Europe | Slovakia, Bratislava, Europe | England, London, Europe
Scotland, Edinburgh, Europe
Wales, Cardiff, Europe | Turkey, Ankara, Asia | China, Beijing, Asia | Japan, Tokyo, Asia
India, New Delhi, Asia
Thailand, Bangkok, Asia | Vietnam, Hanoi, Asia | Iran, Tehran, Asia | Iraq, Baghdad, Asia
Nepal, Kathmandu, Asia
Indonesia, Jakarta, Asia | Malaysia, Kuala Lumpur, Asia | Pakistan, Islamabad, Asia
Qatar, Doha, Asia
Afghanistan, Kabul, Asia | Bangladesh, Dhaka, Asia | Mongolia, Ulaanbaatar, Asia
Jordan, Amman, Asia
Syria, Damascus, Asia | Lebanon, Beirut, Asia | Oman, Muscat, Asia | Georgia, Tbilisi, Asia
Laos, Vientiane, Asia
Armenia, Yerevan, Asia | South Korea, Seoul, Asia | North Korea, Pyongyang, Asia
Bhutan, Thimphu, Asia
Saudi Arabia, Riyadh, Asia | Philippines, Manila, Asia | Cambodia, Phnom Penh, Asia
Egypt, Cairo, Africa
Kenya, Nairobi, Africa | Nigeria, Abuja, Africa | Ghana, Accra, Africa | Morocco, Rabat, Africa
Algeria, Algiers, Africa | Tunisia, Tunis, Africa | Libya, Tripoli, Africa | Sudan, Khartoum, Africa
Ethiopia, Addis Ababa, Africa | Somalia, Mogadishu, Africa | Uganda, Kampala, Africa
Rwanda, Kigali, Africa
Zambia, Lusaka, Africa | Zimbabwe, Harare, Africa | Angola, Luanda, Africa | Senegal, Dakar, Africa
Mali, Bamako, Africa | Namibia, Windhoek, Africa | Madagascar, Antananarivo, Africa
Botswana, Gaborone, Africa
Mozambique, Maputo, Africa | Cameroon, Yaounde, Africa | Canada, Ottawa, North America
Mexico, Mexico City, North America | Cuba, Havana, North America | Jamaica, Kingston, North America
the United States, Washington, North America | Panama, Panama City, North America
Haiti, Port-au-Prince, North America
Costa Rica, San Jose, North America | Honduras, Tegucigalpa, North America
Nicaragua, Managua, North America
Brazil, Brasilia, South America | Argentina, Buenos Aires, South America
Chile, Santiago, South America
Peru, Lima, South America | Colombia, Bogota, South America | Venezuela, Caracas, South America
Ecuador, Quito, South America | Uruguay, Montevideo, South America
Paraguay, Asuncion, South America
Bolivia, Sucre, South America | Australia, Canberra, Oceania | New Zealand, Wellington, Oceania
Fiji, Suva, Oceania
""")]
OPPOSITES = pairs("""
hot: cold | big: small | tall: short | fast: slow | light: dark | old: young | rich: poor | wet: dry
high: low | hard: soft | happy: sad | good: bad | full: empty | open: closed | early: late
up: down
left: right | in: out | on: off | day: night | black: white | strong: weak | loud: quiet
clean: dirty
heavy: weightless | thick: thin | wide: narrow | deep: shallow | near: far | first: last
true: false
love: hate | war: peace | begin: end | buy: sell | push: pull | win: lose | give: take | come: go
always: never | more: less | sharp: blunt | sweet: bitter | brave: afraid | smooth: rough
cheap: expensive
easy: difficult | above: below | before: after | inside: outside | north: south | east: west
laugh: cry
""")
SYMBOLS = pairs("""
gold: Au | silver: Ag | iron: Fe | copper: Cu | oxygen: O | hydrogen: H | carbon: C | nitrogen: N
helium: He | lead: Pb | tin: Sn | zinc: Zn | sodium: Na | potassium: K | calcium: Ca | mercury: Hg
neon: Ne | sulfur: S | nickel: Ni | uranium: U | aluminium: Al | silicon: Si | chlorine: Cl
iodine: I
""")
YOUNG = pairs("""
dog: puppy | cat: kitten | cow: calf | horse: foal | sheep: lamb | pig: piglet | hen: chick
goat: kid | bear: cub | frog: tadpole | deer: fawn | duck: duckling | goose: gosling | swan: cygnet
lion: cub | kangaroo: joey | owl: owlet | eagle: eaglet | seal: pup | butterfly: caterpillar
""")
SOUNDS = pairs("""
dog: woof | cat: meow | cow: moo | sheep: baa | duck: quack | pig: oink | horse: neigh | lion: roar
bee: buzz | snake: hiss | owl: hoot | wolf: howl | mouse: squeak | hen: cluck | crow: caw
frog: croak
""")
LEGS = pairs("""
dog: four | cat: four | spider: eight | ant: six | bee: six | hen: two | snake: no | horse: four
fish: no
duck: two | butterfly: six | owl: two | elephant: four | cow: four | eagle: two | frog: four
""")
COLOURS = pairs("""
the sky: blue | grass: green | snow: white | coal: black | a banana: yellow | blood: red
the sun: yellow
a carrot: orange | milk: white | a lemon: yellow | a frog: green | the sea: blue | a tomato: red
a rose: red
a plum: purple | chocolate: brown | a swan: white | a crow: black | a leaf: green
an elephant: grey
""")
LANGUAGES = pairs("""
France: French | Germany: German | Spain: Spanish | Italy: Italian | Portugal: Portuguese
Japan: Japanese
China: Chinese | Russia: Russian | Greece: Greek | Poland: Polish | Sweden: Swedish
Norway: Norwegian
Denmark: Danish | Finland: Finnish | Hungary: Hungarian | Turkey: Turkish | Brazil: Portuguese
Mexico: Spanish | Egypt: Arabic | Austria: German | Argentina: Spanish | England: English
Iran: Persian
Thailand: Thai | Vietnam: Vietnamese | Australia: English | Ukraine: Ukrainian | Iceland: Icelandic
""")
AUTHORS = pairs("""
Hamlet: Shakespeare | Macbeth: Shakespeare | Faust: Goethe | Don Quixote: Cervantes
Emma: Jane Austen
War and Peace: Tolstoy | Anna Karenina: Tolstoy | The Odyssey: Homer | The Iliad: Homer
Ulysses: Joyce
The Trial: Kafka | Oliver Twist: Dickens | David Copperfield: Dickens | Frankenstein: Mary Shelley
Dracula: Bram Stoker | Moby Dick: Melville | Candide: Voltaire | The Hobbit: Tolkien
Animal Farm: Orwell
Alice in Wonderland: Lewis Carroll | Peter Pan: Barrie | The Jungle Book: Kipling
Tom Sawyer: Mark Twain
""")
DAYS = split("""
Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday
""")
MONTHS = split("""
January | February | March | April | May | June | July | August | September | October | November
December
""")
ORDINALS = split("""
first | second | third | fourth | fifth | sixth | seventh | eighth | ninth | tenth | eleventh
twelfth
""")


def around(names):
    """Pair each name with the next one; the last is followed by the first."""
    return list(zip(names, names[1:] + names[:1], strict=True))

"""Values by kind that `make_quickstart_data.py` draws from: first those of train, then those of validation.

No value is on both sides, whatever its kind. A `>` separates the two units of a conversion.
"""

_TEXT: dict[str, tuple[str, str]] = {
    "city": (
        "Paris, Oslo, Madrid, Tokyo, Boston, Lima, Cairo, Dublin, Rome, Sydney, Chicago, Vienna, Prague, "
        "Denver, Athens, Mumbai, Toronto, Seattle, Warsaw, Nairobi, Bangkok, Zurich, Austin, Porto, New "
        "York, Cape Town",
        "London, Berlin, Lisbon, Helsinki, Miami, Budapest, Singapore, Dallas, Milan, Seoul, Geneva, "
        "Montreal, Hamburg, Santiago, San Diego, Hong Kong",
    ),
    "person": (
        "Anna Schmidt, Carlos Diaz, Emma Wilson, Liam Murphy, Sofia Rossi, Noah Clark, Julia Novak, Peter "
        "Hansen, Maria Lopez, David Cohen, Laura Bianchi, James Carter, Nina Patel, Omar Farouk, Lucy "
        "Adams, Ivan Petrov, Grace Kim, Henry Foss, Alice Martin, Tom Becker, Rosa Vega, Simon Grant, Ella "
        "Brown, Max Weber",
        "Oliver Stern, Hannah Lee, Marco Conti, Claire Dubois, Daniel Green, Eva Larsen, Victor Hale, Ruth "
        "Baker, Samuel Wood, Irene Costa, Frank Miller, Amelia Scott, Jonas Keller, Diana Reed",
    ),
    "currency": (
        "USD, EUR, GBP, JPY, CHF, CAD, AUD, NZD, SEK, NOK, DKK, PLN, CZK, HUF, TRY, INR, CNY, KRW, SGD, HKD, SAR",
        "MXN, BRL, ZAR, THB, IDR, ILS, PHP, MYR, CLP, COP, EGP, RON, BGN",
    ),
    "units": (
        "miles>kilometers, feet>meters, inches>centimeters, pounds>kilograms, ounces>grams, gallons>liters, "
        "acres>hectares, cups>milliliters, yards>fathoms, pints>quarts, tablespoons>teaspoons, "
        "carats>milligrams",
        "minutes>hours, days>weeks, joules>calories, bytes>bits, megabytes>gigabytes, radians>degrees, "
        "pascals>bars, tons>stones",
    ),
    "topic": (
        "climate change, electric cars, football, space travel, solar energy, the election, healthy food, "
        "robots, world history, banking, gardening, volcanoes, inflation, online safety, cinema, old "
        "castles, chess, public transport, bees, wind power, the budget, yoga, hiking trails, photography",
        "quantum computers, tennis, housing prices, ocean life, modern art, school reform, cycling races, "
        "dinosaurs, vaccines, coffee farming, the Olympics, jazz, recycling, earthquakes",
    ),
    "event": (
        "dentist appointment, team meeting, piano lesson, lunch with Ben, project review, birthday party, "
        "yoga class, job interview, book club, car inspection, family dinner, parent evening, budget "
        "meeting, gym session, choir practice, product demo, vet visit, board meeting, garden party, "
        "haircut, sales call, exam",
        "wedding rehearsal, swimming lesson, coffee with Lea, tax consultation, house viewing, eye test, "
        "code review, school concert, tennis match, blood donation, staff training, museum tour, picnic",
    ),
    "task": (
        "water the plants, call the bank, buy milk, feed the cat, pay the rent, walk the dog, take out the "
        "trash, charge the phone, clean the kitchen, book the train, print the contract, wash the car, bake "
        "a cake, return the library books, fix the bike, order new shoes, renew the passport, pick up the "
        "kids, check the oven, read chapter four, update the website, iron the shirts, mow the lawn, buy "
        "stamps",
        "call the plumber, buy bread, pack the suitcase, sign the lease, empty the dishwasher, visit the "
        "dentist, change the lightbulb, send the invoice, pick up the parcel, practice the violin, paint "
        "the fence, buy flowers, cancel the subscription, back up the laptop",
    ),
    "phrase": (
        "good morning, thank you very much, where is the station, I am hungry, see you tomorrow, the bill "
        "please, how are you, I love this song, the door is open, it is too late, happy birthday, I am on "
        "my way, the train is late, what a nice day, call me later, I need help, the soup is cold, we are "
        "at home, have a good trip, my bag is lost, dinner is ready, you are right",
        "good night, where is the bathroom, I am thirsty, see you next week, the shop is closed, "
        "congratulations, my name is Leo, the water is warm, I will be there soon, please wait here, we "
        "missed the bus, the meeting is over, do you have a map, sleep well",
    ),
    "language": (
        "French, German, Spanish, Italian, Polish, Dutch, Greek, Turkish, Arabic, Hindi, Japanese, Korean, "
        "Danish, Swedish, Czech, Latin, Welsh, Thai, Irish, Persian",
        "Portuguese, Russian, Chinese, Norwegian, Finnish, Hungarian, Hebrew, Swahili, Ukrainian, "
        "Vietnamese, Romanian, Croatian",
    ),
    "song": (
        "Blue Moon, Night Train, Paper Boats, Golden Hour, Silver Rain, Old River, Summer Wind, Fire and "
        "Snow, City Lights, Lonely Road, Dancing Shoes, Morning Star, Broken Clock, Wild Horses, Green "
        "Eyes, Last Call, Open Water, Red Balloon, Sweet Home, Northern Sky, Little Bird, Empty Room",
        "Desert Rose, Winter Sun, Glass House, Midnight Bus, Falling Leaves, Electric Dream, Ocean Drive, "
        "Black Coffee, First Light, Stone Bridge, Distant Drums, Yellow Bicycle, Quiet Storm",
    ),
    "artist": (
        "The Owls, Mira Lane, Velvet Foxes, Jack Harper, The Tin Men, Nora Bell, Copper Sky, The Wanderers, "
        "Leo Marsh, Stella Ray, The Night Owls, Ruby Lake, Pine Valley, Tony Blake, The Sailors, Ivy Moon, "
        "Dusty Keys, Paper Kings, Lena Frost, The Harbors",
        "The Comets, Mila Stern, Iron Tulips, Sam Rivers, The Gliders, Zoe Winter, Amber Road, Max Fields, "
        "The Lanterns, Olive Grove, Cherry Bombs, Kate Hollow",
    ),
    "product": (
        "desk lamp, coffee machine, backpack, office chair, water bottle, phone case, winter jacket, "
        "toaster, yoga mat, keyboard, tent, raincoat, vacuum cleaner, wool blanket, frying pan, mirror, "
        "bookshelf, wrist watch, guitar, tea kettle, garden hose, umbrella, monitor, suitcase",
        "blender, running shoe, sleeping bag, picture frame, microphone, leather belt, hair dryer, camping "
        "stove, bicycle helmet, wall clock, pillow, paper shredder, mouse pad, drill",
    ),
    "room": (
        "kitchen, living room, bedroom, bathroom, office, hallway, garage, dining room, guest room, attic, "
        "basement, nursery, library, garden room, laundry room, studio, playroom, workshop, pantry, lobby",
        "study, cellar, balcony, music room, conservatory, meeting room, staircase, dressing room, sauna, "
        "gym, reading room, porch",
    ),
    "ticker": (
        "AAPL, MSFT, TSLA, AMZN, NVDA, IBM, INTC, NFLX, ORCL, DIS, KO, NKE, SAP, BMW, PFE, WMT, GE, F, UBER, BA",
        "AMD, META, CSCO, PEP, MCD, SBUX, ADBE, PYPL, SHEL, TM, SONY, QCOM",
    ),
    "dish": (
        "lasagna, apple pie, tomato soup, fried rice, pancakes, chicken curry, potato salad, onion soup, "
        "brownies, lentil stew, pizza, cheese cake, meatballs, noodles, spinach quiche, beef stew, garlic "
        "bread, risotto, tacos, banana bread, omelette, stuffed peppers, ramen, carrot cake",
        "mushroom soup, goulash, paella, waffles, pumpkin pie, fish tacos, ratatouille, dumplings, baked "
        "beans, lemon tart, chili, egg salad, gnocchi, falafel",
    ),
    "team": (
        "Lions, Eagles, Sharks, Tigers, Bears, Rockets, Pirates, Giants, Wolves, Kings, Hawks, Rangers, "
        "Bulls, Panthers, Dolphins, Saints, Falcons, Raiders, Cubs, Wizards",
        "Ravens, Hornets, Jets, Stars, Dragons, Vikings, Cobras, Knights, Bisons, Owls, Spartans, Chiefs",
    ),
    "restaurant": (
        "Luigi's, The Olive Tree, Blue Door, Casa Verde, Golden Dragon, The Old Mill, Chez Marie, Spice "
        "Garden, Harbor Grill, Red Lantern, La Piazza, The Fox Inn, Sakura House, Green Fork, Bella Vista, "
        "The Anchor, Saffron, Pepper Hill, Corner Bistro, Sunset Deck",
        "Mario's, The Silver Spoon, Lotus Garden, El Toro, River Cafe, The Rusty Nail, Bombay Palace, White "
        "Swan, Taverna Zeus, Maple Kitchen, The Black Pearl, Little Hanoi",
    ),
    "address": (
        "Oak Street, Main Station, City Hall, Park Avenue, Hill Road, Central Library, Mill Lane, Airport "
        "Terminal, Church Street, Market Square, Lake Drive, Grand Hotel, Elm Street, University Gate, "
        "Bridge Road, Harbor Pier, Queen Street, Opera House, Garden Way, Science Museum, Station Road, "
        "Victoria Park",
        "Cedar Avenue, Bus Terminal, Town Museum, Rose Lane, North Gate, Castle Hotel, Chestnut Drive, "
        "Ferry Port, Pearl Street, Hospital Entrance, King Square, Willow Road, Sports Arena",
    ),
    "movie": (
        "The Last Voyage, Silent Forest, Moonlight Express, City of Glass, The Lost Key, Red Planet, Brave "
        "Hearts, The Painter, Dark Waters, Flying High, The Second Chance, Winter Tale, Iron Bridge, A "
        "Quiet Summer, The Detective, Wild Coast, Golden Cage, Seven Doors, The Clockmaker, Lost in Time, "
        "Shadow Lake, Paper Moon",
        "The Long Night, Emerald Island, Midnight Garden, The Inventor, Storm Riders, Hidden Valley, Broken "
        "Compass, The Violinist, Desert Storm, Star Harbor, The Third Witness, Autumn Letters, Blind Spot",
    ),
    "word": (
        "serendipity, candid, frugal, ubiquitous, lucid, zealous, ephemeral, novice, tranquil, obsolete, "
        "gregarious, meticulous, brevity, arduous, benevolent, cryptic, diligent, eloquent, feasible, "
        "hasty, inept, jovial, keen, lethargic",
        "ambiguous, resilient, pragmatic, nostalgia, austere, vivid, reluctant, humble, wary, mundane, "
        "plausible, solitude, tenacious, whimsical",
    ),
}

POOLS = {kind: tuple(side.split(", ") for side in sides) for kind, sides in _TEXT.items()}

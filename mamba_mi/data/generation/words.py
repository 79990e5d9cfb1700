"""The common words that English prompts are made of; of each list any two can stand in the same place."""
NAMES = ("Anna Tom Kate Paul Mary John Emma Jack Alice Bob Peter Sarah David Laura Mark Susan Henry Lucy James Helen Ben Sam "
         "Jane Max Adam Julia Eric Simon Rachel Daniel").split()
LINKS = "boss neighbour friend cousin partner coach rival tutor".split()
THINGS = "key book coin ring cup map hat pen ball lamp knife watch letter phone".split()
HOLDERS = "box bag drawer basket jar bucket cabinet case trunk sack chest".split()
ROOMS = "kitchen garage bedroom office garden hall basement attic bathroom library cellar lobby".split()
BUILDINGS = "hotel school castle museum station tower palace theatre hospital factory".split()
COUNTED = "apples coins books stamps pens cards eggs shells".split()
BOUGHT = "tea bread milk cheese rice soap sugar paper".split()

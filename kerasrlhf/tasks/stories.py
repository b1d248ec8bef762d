"""Short children's stories written for this package, in the style of TinyStories.

No model was trained on them: their perplexity shows whether training has made a language model
worse.
"""

HELD_OUT = [
    "Once upon a time, there was a little girl named Nora. Nora had a red bucket. She took the "
    'bucket to the garden to find some worms. Her brother said, "Worms are not toys. They help '
    'the flowers grow." Nora looked at the worms and put them back in the dirt. The next week, '
    "there were many yellow flowers. Nora was very proud.",
    "One day, Pip the mouse found a big piece of cheese under the table. Pip wanted to eat it "
    "all. Then he saw his friend Dot. Dot was hungry too. Pip broke the cheese in two and gave "
    'half to Dot. "Thank you," said Dot. They sat together and ate until the moon came out.',
    "There was a small boat on the lake. The boat was old and slow, and the other boats laughed "
    "at it. One morning, a little boy fell into the water. The fast boats did not see him, but "
    "the old boat did. It came to the boy and he held on. After that day, nobody laughed at the "
    "old boat again.",
    "Eli did not like the dark. Every night he asked his mom to leave the light on. One night "
    "the light went out. Eli was scared. Then he saw something at the window. It was a firefly, "
    "and then there were ten. They made the room glow. Eli smiled and went to sleep.",
    "Once there was a bear who wanted to bake a cake. He had eggs and milk, but he had no sugar. "
    'He went to the bees and asked for honey. The bees said, "You must say please." The bear '
    "said please, and the bees gave him a jar. The cake was sweet, and the bees came to the "
    "party.",
    "Lena and her grandpa went to the beach. They made a castle with a tall tower. A big wave "
    'came and washed it away. Lena started to cry. Grandpa said, "We can make a new one, but '
    'let us make it over there." They moved away from the water and made a bigger castle. Lena '
    "was happy.",
    'One day, a little train had to pull many cars up the hill. The train was tired. "I cannot '
    'do it," it said. A bird sat on the roof and sang a song. The train listened and went a '
    'little more, and a little more. At last it was at the top. "Thank you for the song," said '
    "the train.",
    "Ravi had a loose tooth. He was afraid to touch it. At lunch he took a bite of his apple, "
    "and the tooth came out! Ravi was surprised. It did not hurt at all. He put the tooth under "
    "his pillow. In the morning, there was a shiny coin.",
    "There once was a tall tree with only one leaf. The leaf felt lonely. In the winter the wind "
    "blew and blew, but the leaf held on. When spring came, many green leaves grew all around "
    'it. "Hello," they said. "We are your family." The old leaf danced in the sun.',
    "Once upon a time, a boy named Otto had a pet duck. The duck liked to follow him everywhere. "
    "One day the duck followed Otto to school. The teacher was surprised, but the children "
    "clapped. The teacher let the duck sit by the window. At the end of the day, Otto and the "
    "duck walked home together.",
    "Zoe wanted to paint a picture for her dad. She had blue and yellow, but she wanted green. "
    'Her sister said, "Mix them and see." Zoe mixed the two colors, and they turned green! She '
    "painted a big green frog. Her dad put the picture on the wall and gave her a hug.",
    "One day, a rabbit found a blue button on the path. He asked the squirrel, but it was not "
    "hers. He asked the fox, but it was not his. Then he met an old goat with a blue coat. The "
    'goat said, "That is my button! I looked for it all day." The goat gave the rabbit a '
    "carrot.",
    "There was a cat named Muffin who loved to climb. She climbed up a very high fence and could "
    "not come down. She cried and cried. A man with a ladder heard her. He climbed up and took "
    "Muffin in his arms. Muffin went home and drank some warm milk. She did not climb so high "
    "again.",
    "Sara and Leo had one swing. Both of them wanted to go first. They pulled and shouted. Their "
    'mom came out and said, "Count to ten, and then change." Leo pushed Sara and counted to '
    "ten. Then Sara pushed Leo. They laughed and played until dinner.",
    "Once upon a time, there was a little star that could not shine. The other stars were "
    'bright. "What is wrong with me?" asked the little star. The moon said, "There is a cloud '
    'in front of you. Wait a bit." The wind blew the cloud away, and the little star was the '
    "brightest of all.",
    "It was snowing, and Ben wanted to build a snowman. He made a big ball and a small ball. He "
    "did not have a nose for the snowman. His neighbor, an old lady, gave him a carrot. Ben said "
    "thank you and cleaned the snow from her steps. They both waved at the snowman.",
]

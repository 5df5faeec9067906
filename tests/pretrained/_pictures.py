"""Simple drawings of what the networks know, made here so that no photograph is needed."""

from PIL import Image, ImageDraw

SIZE = (320, 320)


def canvas(color):
    """A picture of one colour, and its pencil."""
    picture = Image.new("RGB", SIZE, color)
    return picture, ImageDraw.Draw(picture)


def airplane():
    picture, draw = canvas((150, 190, 235))
    body = [(20, 165), (60, 150), (290, 148), (305, 160), (290, 172), (60, 178)]
    draw.polygon(body, fill=(225, 228, 232))
    draw.polygon([(150, 165), (190, 165), (120, 260), (95, 260)], fill=(190, 194, 200))
    draw.polygon([(160, 150), (195, 150), (150, 80), (130, 80)], fill=(200, 204, 210))
    draw.polygon([(30, 155), (65, 152), (40, 105), (22, 105)], fill=(200, 204, 210))
    return picture


def ship():
    picture, draw = canvas((170, 205, 240))
    draw.rectangle((0, 200, 320, 320), fill=(35, 80, 130))
    draw.polygon([(30, 180), (290, 180), (265, 225), (60, 225)], fill=(120, 40, 40))
    draw.rectangle((90, 130, 220, 180), fill=(235, 235, 235))
    draw.rectangle((120, 95, 190, 130), fill=(235, 235, 235))
    draw.rectangle((145, 55, 165, 95), fill=(60, 60, 60))
    return picture


def truck():
    picture, draw = canvas((200, 205, 210))
    draw.rectangle((0, 240, 320, 320), fill=(100, 100, 105))
    draw.rectangle((30, 80, 210, 230), fill=(235, 235, 240))
    draw.rectangle((212, 130, 290, 230), fill=(180, 30, 30))
    draw.rectangle((235, 145, 285, 180), fill=(60, 80, 100))
    for x in (70, 130, 250):
        draw.ellipse((x - 25, 210, x + 25, 260), fill=(25, 25, 25))
    return picture


def frog():
    picture, draw = canvas((110, 85, 55))
    draw.ellipse((60, 120, 260, 260), fill=(70, 130, 40))
    for x in (120, 200):
        draw.ellipse((x - 30, 80, x + 30, 140), fill=(80, 145, 50))
        draw.ellipse((x - 15, 95, x + 15, 125), fill=(15, 15, 10))
    for x in (70, 250):
        draw.ellipse((x - 40, 200, x + 40, 280), fill=(60, 115, 35))
    return picture


def horse():
    picture, draw = canvas((120, 160, 80))
    draw.rectangle((0, 0, 320, 110), fill=(180, 210, 240))
    draw.ellipse((80, 120, 230, 200), fill=(110, 65, 30))
    for x in (95, 120, 190, 212):
        draw.rectangle((x - 8, 180, x + 8, 275), fill=(95, 55, 25))
    draw.polygon([(205, 150), (235, 160), (275, 80), (245, 65)], fill=(110, 65, 30))
    head = [(245, 65), (275, 80), (305, 105), (295, 118), (260, 100)]
    draw.polygon(head, fill=(110, 65, 30))
    draw.polygon([(85, 140), (60, 200), (72, 205), (95, 160)], fill=(50, 30, 15))
    return picture


def automobile():
    picture, draw = canvas((190, 200, 205))
    draw.rectangle((0, 230, 320, 320), fill=(110, 110, 112))
    roof = [(90, 165), (125, 115), (225, 115), (265, 165), (300, 180)]
    draw.polygon([(20, 235), (20, 175), *roof, (300, 235)], fill=(190, 25, 25))
    draw.polygon([(105, 163), (133, 125), (170, 125), (170, 163)], fill=(60, 75, 90))
    draw.polygon([(180, 125), (220, 125), (248, 163), (180, 163)], fill=(60, 75, 90))
    for x in (85, 240):
        draw.ellipse((x - 30, 205, x + 30, 265), fill=(20, 20, 20))
        draw.ellipse((x - 14, 221, x + 14, 249), fill=(180, 180, 180))
    return picture


DRAWINGS = (airplane, ship, truck, frog, horse, automobile)


def save_all(directory):
    """Saves every drawing as `NAME.png`; returns the paths."""
    paths = [directory / f"{draw.__name__}.png" for draw in DRAWINGS]
    for draw, path in zip(DRAWINGS, paths, strict=True):
        draw().save(path)
    return paths

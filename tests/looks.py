"""Whether the texts of a figure can be read."""

from matplotlib.text import Text


def texts(figure):
    """Every visible text with its box in pixels, but for tick labels beyond an axis's ends, which are not drawn."""
    figure.canvas.draw()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            outside = [t for t in axis.get_major_ticks() + axis.get_minor_ticks() if not low <= t.get_loc() <= high]
            hidden |= {label for tick in outside for label in (tick.label1, tick.label2)}
    for item in figure.findobj(Text):
        if item.get_visible() and item.get_text().strip() and item not in hidden:
            yield item, item.get_window_extent(figure.canvas.get_renderer())


def assert_readable(figure):
    """No text is clipped and none overlaps another."""
    found = list(texts(figure))
    assert len(found) > 8
    width, height = figure.canvas.get_width_height()
    for item, box in found:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{item.get_text()!r} is clipped: {box.extents} in {width} x {height}"
    for i, (a, box) in enumerate(found):
        for b, other in found[i + 1 :]:
            if a.get_rotation() % 90 or b.get_rotation() % 90:
                continue  # the box of slanted text says little
            both = [
                max(0, min(box.x1, other.x1) - max(box.x0, other.x0)),
                max(0, min(box.y1, other.y1) - max(box.y0, other.y0)),
            ]
            assert min(both) <= 1, f"{a.get_text()!r} overlaps {b.get_text()!r}"

//! A table of as many columns as fit: the less important ones are left out first, and what is left over makes some wider.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;

pub struct Column {
    pub head: &'static str,
    pub least: u16,
    /// With room, so wide.
    pub most: u16,
    /// The higher, the sooner it is left out. 0 never is.
    pub rank: u8,
    /// Numbers end at their right edge.
    pub right: bool,
    /// The order is by it.
    pub sorted: bool,
}

impl Column {
    pub fn text(head: &'static str, least: usize, most: usize) -> Self {
        let columns = |wide: usize| u16::try_from(wide).unwrap_or(u16::MAX);
        let (least, most) = (columns(least), columns(most.max(least)));
        Self { head, least, most, rank: 0, right: false, sorted: false }
    }

    pub fn number(head: &'static str, width: usize) -> Self {
        Self { right: true, ..Self::text(head, width, width) }
    }

    pub fn rank(self, rank: u8) -> Self {
        Self { rank, ..self }
    }

    pub fn sorted(self, sorted: bool) -> Self {
        Self { sorted, ..self }
    }
}

/// Each column's width; 0 where it is left out.
pub fn widths(columns: &[Column], total: u16) -> Vec<u16> {
    let mut shown: Vec<bool> = vec![true; columns.len()];
    let needed = |shown: &[bool]| {
        let of = columns.iter().zip(shown).filter(|(_, shown)| **shown).map(|(column, _)| u32::from(column.least) + 1);
        of.sum::<u32>().saturating_sub(1)
    };
    while needed(&shown) > u32::from(total) {
        let least = (0..columns.len()).filter(|at| shown[*at] && columns[*at].rank > 0).max_by_key(|at| columns[*at].rank);
        match least {
            Some(at) => shown[at] = false,
            None => break,
        }
    }
    let mut rest = u32::from(total).saturating_sub(needed(&shown));
    let mut widths = Vec::new();
    for (column, shown) in columns.iter().zip(shown) {
        let more = rest.min(u32::from(column.most - column.least));
        rest -= if shown { more } else { 0 };
        widths.push(if shown { column.least + more as u16 } else { 0 });
    }
    widths
}

/// Headings, then rows; `chosen` is one of them, and kept in sight.
pub fn draw(
    buffer: &mut Buffer,
    area: Rect,
    columns: &[Column],
    widths: &[u16],
    rows: &[Vec<Line<'static>>],
    chosen: Option<usize>,
    heading: Style,
) {
    if area.height == 0 {
        return;
    }
    let heads = columns.iter().map(|column| {
        let style = if column.sorted { heading.add_modifier(Modifier::UNDERLINED) } else { heading };
        Line::styled(column.head, style)
    });
    line(buffer, Rect { height: 1, ..area }, columns, widths, &heads.collect::<Vec<_>>());
    let room = usize::from(area.height - 1);
    for (at, row) in rows.iter().enumerate().skip(first(rows.len(), room, chosen)).take(room) {
        let y = area.y + 1 + (at - first(rows.len(), room, chosen)) as u16;
        let place = Rect { y, height: 1, ..area };
        line(buffer, place, columns, widths, row);
        if chosen == Some(at) {
            buffer.set_style(place, Style::new().add_modifier(Modifier::REVERSED));
        }
    }
}

/// The first row that is seen: the chosen one is in the middle, but where the table begins or ends.
pub fn first(rows: usize, room: usize, chosen: Option<usize>) -> usize {
    chosen.unwrap_or(0).saturating_sub(room / 2).min(rows.saturating_sub(room))
}

fn line(buffer: &mut Buffer, area: Rect, columns: &[Column], widths: &[u16], cells: &[Line<'static>]) {
    let mut x = area.x;
    for ((column, width), cell) in columns.iter().zip(widths).zip(cells) {
        let left = area.right().saturating_sub(x);
        let width = (*width).min(left);
        if width == 0 {
            continue;
        }
        let wide = u16::try_from(cell.width()).unwrap_or(u16::MAX);
        let indent = if column.right { width.saturating_sub(wide) } else { 0 };
        buffer.set_line(x + indent, area.y, cell, width - indent);
        x += width + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_important_column_goes_first_and_the_first_one_never() {
        let columns = [
            Column::text("A", 10, 20),
            Column::number("B", 5).rank(2),
            Column::number("C", 5).rank(1),
            Column::text("D", 4, 8).rank(3),
        ];
        assert_eq!(widths(&columns, 100), [20, 5, 5, 8]);
        assert_eq!(widths(&columns, 30), [13, 5, 5, 4]);
        assert_eq!(widths(&columns, 26), [14, 5, 5, 0]);
        assert_eq!(widths(&columns, 20), [14, 0, 5, 0]);
        assert_eq!(widths(&columns, 3), [10, 0, 0, 0], "and is cut when it is drawn");
    }

    #[test]
    fn the_chosen_row_is_always_in_sight() {
        for rows in 0..30 {
            for room in 1..12 {
                for chosen in 0..rows {
                    let first = first(rows, room, Some(chosen));
                    assert!(
                        (first..first + room).contains(&chosen) && (first == 0 || first + room <= rows),
                        "{rows} {room} {chosen}"
                    );
                }
            }
        }
    }
}

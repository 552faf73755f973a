package configfile

import "strings"

// Nearest returns the name that word most likely means, or "" if none is near. A name
// is near if it differs in few letters, or if one is the beginning of the other.
func Nearest(word string, names []string) string {
	best, least := "", 0
	for _, name := range names {
		d := distance(spelling(word), spelling(name))
		if d <= max(1, min(len(word), len(name))/3) && (best == "" || d < least) {
			best, least = name, d
		}
	}
	if best != "" || len(word) < 3 {
		return best
	}
	for _, name := range names {
		if strings.HasPrefix(name, word) || len(name) >= 3 && strings.HasPrefix(word, name) {
			return name
		}
	}
	return ""
}

// spelling removes usual differences: case, and '-', '_' or a space between words.
func spelling(s string) string {
	return strings.NewReplacer("-", "", "_", "", " ", "").Replace(strings.ToLower(s[:min(len(s), 64)]))
}

// distance counts the bytes to insert, delete, change or swap with their neighbour
// to change a into b.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(change, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

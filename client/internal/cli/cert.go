package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/client"
)

type certCommand struct {
	tunnelFlags
	Out   string `help:"Folder for key.pem, cert.pem and ca.pem." required:"" type:"path" placeholder:"DIR"`
	Wake  bool   `help:"Wake the engine before the files are written."`
	Watch bool   `help:"Stay, and replace the files at half life."`
}

func (certCommand) Help() string {
	return `For tools that want files. They are 0600 in a 0700 folder and are replaced as a set: DIR/key.pem, cert.pem and ca.pem lead through one symbolic link, ..data, which is exchanged. The key is on disk then: mayfly exec and mayfly proxy keep it in memory.

Prints the lines to paste for Dagger, docker buildx, buildctl, ghostunnel and Envoy. A tool with files is cut at the certificate's end, an hour at most; it must read the files again for its next connection, as Dagger and buildx do.`
}

// Run writes the files.
func (c *certCommand) Run(ctx context.Context, p *program) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	if err := prepareOut(c.Out); err != nil {
		return failf(exitFailed, "give --out a new folder, or one that only you can write", "%w", err)
	}
	t, err := p.open(ctx, c.tunnelFlags)
	if err != nil {
		return err
	}
	defer t.client.Close()
	if c.Wake {
		if _, err := t.wake(ctx); err != nil {
			return err
		}
	}
	if err := writeCredential(c.Out, t.client.Credential()); err != nil {
		return failf(exitFailed, "give --out a new folder", "%w", err)
	}
	paste := newPaste(c.Out, t.engine())
	if p.JSON {
		p.json(t.opened(paste.dagger(), paste.buildkit()))
	} else {
		paste.print(p)
	}
	if !c.Watch {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.renewed:
			if err := writeCredential(c.Out, t.client.Credential()); err != nil {
				p.warn("the renewed certificate could not be written, the files end at %s: %v", t.client.Info().NotAfter.UTC().Format(time.RFC3339), err)
			}
		}
	}
}

// prepareOut makes the folder, or checks that only this user can change its
// content.
func prepareOut(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	fi, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !fi.IsDir():
		return fmt.Errorf("%s is not a folder", dir)
	case !ownedByUser(fi) || fi.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s can be written by others (mode %v)", dir, fi.Mode())
	}
	return nil
}

// The file names of a set, and the link that replaces a set as a whole.
const (
	keyName  = "key.pem"
	certName = "cert.pem"
	caName   = "ca.pem"
	dataLink = "..data"
)

// writeCredential writes a set into a new folder and then replaces the link through
// which all three names lead. So certificate and key always match.
func writeCredential(dir string, c *client.Credential) error {
	key, err := c.KeyPEM()
	if err != nil {
		return err
	}
	set, err := os.MkdirTemp(dir, "..set-*") // 0700
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{keyName: key, certName: c.ChainPEM(), caName: c.TrustBundlePEM()} {
		if err := os.WriteFile(filepath.Join(set, name), data, 0o600); err != nil {
			return errors.Join(err, os.RemoveAll(set))
		}
		if err := linkName(dir, name); err != nil {
			return errors.Join(err, os.RemoveAll(set))
		}
	}
	old, _ := os.Readlink(filepath.Join(dir, dataLink)) // there is none at first
	next := filepath.Join(dir, dataLink+".next")
	os.Remove(next)
	if err := errors.Join(os.Symlink(filepath.Base(set), next), os.Rename(next, filepath.Join(dir, dataLink))); err != nil {
		return errors.Join(err, os.RemoveAll(set))
	}
	if strings.HasPrefix(old, "..set-") && !strings.Contains(old, "/") {
		return os.RemoveAll(filepath.Join(dir, old))
	}
	return nil
}

// linkName makes DIR/name lead through the link. It keeps a file with that name
// that is not such a link, and returns an error.
func linkName(dir, name string) error {
	path, want := filepath.Join(dir, name), filepath.Join(dataLink, name)
	have, err := os.Readlink(path)
	switch {
	case err == nil && have == want:
		return nil
	case err == nil:
		return fmt.Errorf("%s is a link to %s", path, have)
	case errors.Is(err, fs.ErrNotExist):
		return os.Symlink(want, path)
	}
	return fmt.Errorf("%s exists, and mayfly did not make it", path)
}

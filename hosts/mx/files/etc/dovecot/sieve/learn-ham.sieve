require ["vnd.dovecot.pipe", "copy", "imapsieve", "environment"];
# What goes from Junk to Trash is not wanted.
if environment :is "imap.mailbox" "Trash" {
    stop;
}
pipe :copy "learn-ham";
